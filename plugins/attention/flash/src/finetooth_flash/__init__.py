"""Flash attention 2, 3 and 4 for finetooth."""
