"""Commands in separate files."""
