"""Learn from preferences."""
