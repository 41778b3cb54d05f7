"""What the backend decides before any weight is loaded: memory, cost, shared rows."""
