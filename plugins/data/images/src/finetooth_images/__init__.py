"""Images for vision-language models."""
