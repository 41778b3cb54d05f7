"""Losses of preferences: the DPO family, those without a reference, and KTO."""
