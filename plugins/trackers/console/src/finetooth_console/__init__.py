"""A live line while a run trains, and the loss curve at its end."""
