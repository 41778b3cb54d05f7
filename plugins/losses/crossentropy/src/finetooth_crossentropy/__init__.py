"""Cross entropy over the targets that count."""
