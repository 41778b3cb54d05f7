"""Attention that entries bring, in models of transformers."""
