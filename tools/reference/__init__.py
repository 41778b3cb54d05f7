"""Reads the workspace and writes the reference pages; see `tools/make_reference.py`."""
