"""Words, names and JSON: what reads and writes text."""
