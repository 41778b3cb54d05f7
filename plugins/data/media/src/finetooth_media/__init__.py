"""Images, sounds and videos for models that see and hear."""
