"""A model that judges its own answers and learns its preferences."""
