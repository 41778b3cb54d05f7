"""DeepSpeed's ZeRO: each rank keeps a part of the optimizer's state."""
