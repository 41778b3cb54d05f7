"""Renders with the tokenizer's own chat template and proves the trained spans."""
