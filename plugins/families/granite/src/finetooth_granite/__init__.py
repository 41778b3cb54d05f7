"""The Granite family."""
