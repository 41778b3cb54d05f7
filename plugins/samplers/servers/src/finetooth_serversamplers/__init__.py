"""Rollouts from servers: vLLM, or any that speaks OpenAI's protocol and returns token ids."""
