"""Losses of reinforcement learning over the unmasked targets."""
