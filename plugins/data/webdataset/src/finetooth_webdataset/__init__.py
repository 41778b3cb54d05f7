"""Reads tar shards in the WebDataset layout: the files of one key are one row."""
