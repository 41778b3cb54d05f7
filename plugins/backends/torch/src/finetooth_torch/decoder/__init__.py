"""Decoder layers over a stream of tokens, beside transformers' own forward."""
