"""What an engine of the MLX backend can do at most; `reference` and `head` depend on what it was built with."""

from __future__ import annotations

CAPABILITIES = frozenset(
    {
        "handles",
        "head",
        "depths",
        "roles",
        "step_settings",
        "embedding_noise",
        "weights",
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
        "repetition_penalty",
        "schema",
        "continuous",
        "adapters",
        "additions",
    }
)
