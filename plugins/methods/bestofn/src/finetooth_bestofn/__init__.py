"""Training on the best answers that the model samples."""
