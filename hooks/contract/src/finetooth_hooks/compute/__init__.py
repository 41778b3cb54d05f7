"""What an engine computes with: arrays, losses, kernels, adapters, backends and strategies."""
