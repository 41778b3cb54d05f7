"""Trained reward models in use."""
