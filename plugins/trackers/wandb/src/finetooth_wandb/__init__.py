"""Steps, evaluations and the recipe at Weights & Biases, online or offline."""
