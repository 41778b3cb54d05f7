"""Decoder layers over a stream of tokens, an alternative to transformers' own forward."""
