"""Runs as their folders tell of them, and what trackers share."""
