"""A language model as judge: scores answers by a rubric, or compares them with a reference."""
