"""A toy language model with an engine in float64 NumPy: small enough to be right by reading."""
