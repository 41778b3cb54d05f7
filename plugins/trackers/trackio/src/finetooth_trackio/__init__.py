"""Steps, evaluations and the recipe in Trackio, on this machine."""
