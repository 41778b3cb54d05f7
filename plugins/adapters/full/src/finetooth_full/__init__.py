"""Full fine-tuning: every parameter of the model trains."""
