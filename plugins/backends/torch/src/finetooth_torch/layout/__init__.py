"""A step's data as tensors: rectangles, streams without padding, rows that data share."""
