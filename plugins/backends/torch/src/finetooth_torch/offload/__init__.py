"""What of an engine is kept elsewhere than on the device while it is not needed: activations, frozen layers."""
