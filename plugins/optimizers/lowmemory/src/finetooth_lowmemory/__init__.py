"""Optimizers with smaller states per weight."""
