"""The Llama family (Llama 2 and 3, SmolLM2) and the llama3 renderer."""
