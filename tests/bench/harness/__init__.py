"""The bench: what is measured, how contenders take turns, and how figures become docs/benchmarks.md."""
