"""Held-out loss and perplexity."""
