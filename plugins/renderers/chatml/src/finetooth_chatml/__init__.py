"""The ChatML renderer: SmolLM2, Qwen and others."""
