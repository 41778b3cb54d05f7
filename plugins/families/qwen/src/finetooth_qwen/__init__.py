"""The Qwen family: Qwen2 to Qwen3.5, and its renderers."""
