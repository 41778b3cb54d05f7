"""Steps and evaluations as CSV tables."""
