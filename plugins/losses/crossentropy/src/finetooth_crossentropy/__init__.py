"""Cross entropy over the unmasked targets."""
