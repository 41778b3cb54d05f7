"""Row formats: chat, prompt and completion, instruction, text."""
