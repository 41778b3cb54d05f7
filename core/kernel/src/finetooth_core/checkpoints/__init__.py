"""When a run is saved, where it is kept, what counts, and how it resumes."""
