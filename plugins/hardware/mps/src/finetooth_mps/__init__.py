"""The GPU of an Apple chip, for the torch backend."""
