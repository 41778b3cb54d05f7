"""Any other causal language model that transformers loads."""
