"""Training state in memory and on disk, and its checks before loading."""
