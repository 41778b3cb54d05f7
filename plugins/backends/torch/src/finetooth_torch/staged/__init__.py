"""A model of whose decoder layers each rank has some (pipeline parallelism)."""
