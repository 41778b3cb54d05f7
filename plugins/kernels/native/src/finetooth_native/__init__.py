"""Compiled kernels for CPUs: a provider. Everything heavy is in its modules."""
