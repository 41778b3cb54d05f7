"""Reads the rows of a query from SQLite or PostgreSQL."""
