"""The OLMo family."""
