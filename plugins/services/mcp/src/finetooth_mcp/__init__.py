"""Tools for assistants that fine-tune: a face of a finetooth server."""
