"""torch's scaled dot product attention for finetooth."""
