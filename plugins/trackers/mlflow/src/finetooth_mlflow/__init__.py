"""Steps, evaluations and the recipe in MLflow."""
