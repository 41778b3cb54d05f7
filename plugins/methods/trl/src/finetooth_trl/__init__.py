"""Trainers of TRL as a method."""
