"""A page over the runs of a folder."""
