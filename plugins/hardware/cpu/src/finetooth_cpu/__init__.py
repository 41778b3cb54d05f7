"""The host CPU as finetooth hardware."""
