"""Rows and data: read in portions, rendered, limited, counted."""
