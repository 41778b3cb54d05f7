"""Continued pre-training on documents."""
