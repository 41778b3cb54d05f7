"""Optimizer steps: parameters, loss scale, settings."""
