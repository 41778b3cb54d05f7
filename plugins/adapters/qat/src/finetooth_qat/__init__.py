"""Quantisation-aware training."""
