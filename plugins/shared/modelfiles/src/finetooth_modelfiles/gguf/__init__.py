"""GGUF files: their header, config, tokenizer and numbers, for any framework."""
