"""The Falcon-H1 family."""
