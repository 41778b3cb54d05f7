"""Keeps activations and frozen layers off the device while they are not needed."""
