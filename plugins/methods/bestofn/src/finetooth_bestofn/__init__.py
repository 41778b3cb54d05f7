"""The best of what a model samples, learned as answers."""
