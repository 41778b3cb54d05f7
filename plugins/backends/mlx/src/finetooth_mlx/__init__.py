"""Fine-tuning with Apple MLX: engine, loader, adapters, optimizers."""
