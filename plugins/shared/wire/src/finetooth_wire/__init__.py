"""Data and results of an engine as JSON: what a server and its clients send each other."""
