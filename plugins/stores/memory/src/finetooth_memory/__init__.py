"""Snapshots of a run in memory."""
