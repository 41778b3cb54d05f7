"""Scalars for TensorBoard."""
