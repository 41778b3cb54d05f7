"""From the rows of a recipe to data: read once, rendered by all cores, kept on disk, found again."""
