"""Probes: short questions with a check of the answer, the same for every model."""
