"""One page for each run."""
