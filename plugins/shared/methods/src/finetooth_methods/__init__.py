"""What several training methods share: batches of rows, the reference model, health of preferences."""
