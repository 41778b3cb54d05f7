"""Exact match of greedy answers."""
