"""What methods share: batches, steps, and numbers that tell how a run does."""
