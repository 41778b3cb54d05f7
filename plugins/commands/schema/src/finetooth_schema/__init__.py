"""`ft schema`: JSON Schema of the recipe."""
