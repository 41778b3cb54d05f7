"""A method that remembers in arrays."""
