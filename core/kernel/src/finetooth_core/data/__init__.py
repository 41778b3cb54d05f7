"""From the rows of a recipe to data: read once, rendered on all cores, cached on disk."""
