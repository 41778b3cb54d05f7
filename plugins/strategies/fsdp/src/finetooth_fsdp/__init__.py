"""Fully sharded training over several ranks."""
