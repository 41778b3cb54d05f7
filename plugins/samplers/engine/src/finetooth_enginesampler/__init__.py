"""Rollouts from the engine that trains, and recorded ones."""
