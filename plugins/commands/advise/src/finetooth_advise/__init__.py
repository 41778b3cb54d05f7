"""What of a model fits which memory, and which method fits what one has."""
