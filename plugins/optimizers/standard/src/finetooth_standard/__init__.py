"""Standard optimizers."""
