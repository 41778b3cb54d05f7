"""Triton kernels for GPUs: a provider. Everything heavy is in its modules."""
