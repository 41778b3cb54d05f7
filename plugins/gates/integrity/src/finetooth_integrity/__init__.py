"""Gates of checkpoints."""
