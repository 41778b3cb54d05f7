"""Turns the text of a recipe into checked settings: YAML, overrides, other names, and error messages."""
