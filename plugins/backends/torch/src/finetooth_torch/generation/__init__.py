"""Sampling: rows being written token by token, caches, batches that requests join."""
