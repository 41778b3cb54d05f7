"""A step's examples as tensors: rectangles, streams without padding, shared rows."""
