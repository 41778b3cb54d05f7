"""Tools by which an assistant fine-tunes: a face of a finetooth server."""
