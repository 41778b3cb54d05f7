"""`ft eval`: measure runs and models on any rows, side by side."""
