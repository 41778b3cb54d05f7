"""Checkpoints in a folder."""
