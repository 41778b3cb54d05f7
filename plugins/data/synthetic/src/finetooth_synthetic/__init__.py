"""Draws rows of random words, as long as you say, for benchmarks and tests."""
