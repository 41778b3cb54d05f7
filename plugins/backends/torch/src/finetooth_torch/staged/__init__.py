"""A model whose decoder layers are divided among ranks (pipeline parallelism)."""
