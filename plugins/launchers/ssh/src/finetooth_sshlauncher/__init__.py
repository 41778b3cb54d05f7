"""Ranks on hosts that ssh reaches."""
