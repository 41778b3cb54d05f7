"""The Tinker protocol, for scripts that use the public `tinker` client."""
