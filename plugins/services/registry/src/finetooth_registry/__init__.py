"""A registry of trained models: signed records, release gates and channels."""
