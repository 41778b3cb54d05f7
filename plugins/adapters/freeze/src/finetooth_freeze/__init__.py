"""Fine-tuning of the top layers only."""
