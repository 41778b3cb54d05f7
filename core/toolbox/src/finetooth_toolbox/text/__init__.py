"""Text: words, names and JSON."""
