"""A full-screen view of a run."""
