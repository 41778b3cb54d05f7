"""Context-parallel training over several ranks."""
