"""The Cohere family."""
