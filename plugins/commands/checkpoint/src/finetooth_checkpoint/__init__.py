"""`ft checkpoint`: list, check, compare and remove checkpoints."""
