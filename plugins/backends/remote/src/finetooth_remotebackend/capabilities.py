"""What a remote engine can do at most; `reference` depends on the adapter."""

CAPABILITIES = frozenset({"handles", "gradients", "zero_grad", "generate", "full_state", "reference"})
