"""torch's flex attention for finetooth."""
