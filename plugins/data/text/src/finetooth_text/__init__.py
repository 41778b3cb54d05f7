"""Reads plain text files, one document a file."""
