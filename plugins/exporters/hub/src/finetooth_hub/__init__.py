"""Pushing what a run trained to a model hub."""
