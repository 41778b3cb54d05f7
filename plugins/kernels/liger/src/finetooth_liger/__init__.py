"""Liger's kernels as a provider."""
