"""The Tinker wire: for scripts that were written for the public `tinker` client."""
