"""Checks of entries: one module for each kind of thing that a plugin offers."""
