"""AMD GPUs as finetooth hardware."""
