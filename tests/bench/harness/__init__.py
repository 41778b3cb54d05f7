"""The bench: what is measured, how contenders take turns, and how figures become docs/benchmarks.md."""

from pathlib import Path

RESULTS = Path(__file__).resolve().parents[1] / "results"
"""Raw results of this project's own machine; those of machine NAME lie in the folder results-NAME next to it."""
