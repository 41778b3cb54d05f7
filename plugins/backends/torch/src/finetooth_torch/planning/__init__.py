"""The backend's decisions before any weight is loaded: memory, cost, shared rows."""
