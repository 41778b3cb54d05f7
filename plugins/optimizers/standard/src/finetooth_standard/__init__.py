"""Standard optimizers and learning-rate schedules."""
