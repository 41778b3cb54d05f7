"""From the text of a recipe to checked settings: YAML, overrides, other spellings, and what is wrong."""
