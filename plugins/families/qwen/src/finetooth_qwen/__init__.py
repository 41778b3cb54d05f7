"""The Qwen family: Qwen2, Qwen2.5, Qwen3."""
