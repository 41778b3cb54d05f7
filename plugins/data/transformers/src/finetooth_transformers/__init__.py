"""Loads base models from transformers folders and hub ids."""
