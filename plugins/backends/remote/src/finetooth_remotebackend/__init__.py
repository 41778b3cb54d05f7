"""The backend `remote`: an engine at a server."""
