"""A model that judges its own answers and learns which it prefers."""
