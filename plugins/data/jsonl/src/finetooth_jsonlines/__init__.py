"""Reads JSON lines strictly: every broken line is named, nothing is repaired in silence."""
