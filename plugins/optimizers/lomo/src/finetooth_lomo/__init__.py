"""finetooth-lomo: optimizers for which gradients are never held all at once."""
