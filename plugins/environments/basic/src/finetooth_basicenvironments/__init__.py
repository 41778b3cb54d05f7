"""Environments that need nothing else: a question, number guessing, a calculator, search in texts."""
