"""Contenders and measuring of tests/bench/kernels.py."""
