"""Reads datasets of the hub and those saved to disk with the datasets library."""
