"""metrics.jsonl in the run folder."""
