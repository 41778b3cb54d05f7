"""Generates verifiable questions with reasoning-gym."""
