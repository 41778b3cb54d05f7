"""finetooth-lomo: optimizers that never hold all gradients at once."""
