"""Attention as the model's own code writes it down, for finetooth."""
