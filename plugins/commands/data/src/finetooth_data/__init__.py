"""`ft data`: rows as the model will see them, data made ready ahead, and what is kept of them."""
