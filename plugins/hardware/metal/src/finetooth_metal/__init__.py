"""Apple chips as finetooth hardware."""
