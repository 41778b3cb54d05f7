"""The LFM2 family."""
