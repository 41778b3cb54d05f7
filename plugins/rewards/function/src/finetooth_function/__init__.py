"""A reward that is a function in a file of one's own, also one written for TRL."""
