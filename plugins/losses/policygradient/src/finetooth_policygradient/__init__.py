"""Losses of reinforcement learning over the targets that count."""
