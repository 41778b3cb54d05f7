"""The launcher `environment`: others start the ranks, and each finds its place by its environment variables."""
