"""What an engine of the MLX backend can do at most; `reference` depends on the adapter."""

from __future__ import annotations

CAPABILITIES = frozenset(
    {
        "handles",
        "gradients",
        "zero_grad",
        "generate",
        "full_state",
        "snapshots",
        "interrupt",
        "reference",
        "usage",
        "release",
        "temperature",
        "min_p",
        "additions",
    }
)
