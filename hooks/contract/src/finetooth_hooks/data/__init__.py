"""From a row to a datum: sources, examples, what a method prepares, and rows that cannot be used."""
