"""Commands of their own files."""
