"""Checks the values that plugins return to the core, and names a plugin at fault."""
