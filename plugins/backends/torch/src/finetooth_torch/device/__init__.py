"""The device that an engine computes on, and its memory."""
