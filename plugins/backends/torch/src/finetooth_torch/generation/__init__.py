"""Sampling: token by token, with caches, in batches that requests join."""
