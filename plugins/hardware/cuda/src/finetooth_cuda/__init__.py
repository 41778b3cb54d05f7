"""NVIDIA GPUs as finetooth hardware."""
