"""Checks of an engine: what every implementation must compute, whatever it is built on."""
