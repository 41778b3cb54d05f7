"""Heads of the model: its language-model head, and a scalar head."""
