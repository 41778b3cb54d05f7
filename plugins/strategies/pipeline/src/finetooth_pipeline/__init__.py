"""Pipeline-parallel training over several ranks."""
