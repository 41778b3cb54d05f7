"""torch's attention over sequences of any length, for finetooth."""
