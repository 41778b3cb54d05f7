"""Models that a server spreads over several processes."""
