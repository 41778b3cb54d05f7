"""Code that a model wrote, run in a sandbox and judged by tests."""
