"""When and where a run is saved, which checkpoints count, and how it resumes."""
