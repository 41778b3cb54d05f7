"""GPTQ in plain torch."""
