"""Attention entries in models of transformers."""
