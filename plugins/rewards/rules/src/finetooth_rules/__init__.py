"""Rewards that are rules: a number, a pattern, a format, a length, a JSON schema."""
