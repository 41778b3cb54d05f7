"""The engine's primitives as a service."""
