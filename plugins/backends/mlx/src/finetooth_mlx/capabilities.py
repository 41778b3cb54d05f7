"""What an engine of the MLX backend can do at most; `reference` and `head` depend on the run.

Three of torch's capabilities have no meaning here. `module`: MLX keeps no gradients on modules. `optimizers`: only
torch's optimizers have copies and hooks of tensors. `ranks`: strategies divide and send torch's tensors, and a Mac has
one GPU. `trees` is not built: segments that continue others are refused by the plan.
"""

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
        "profile",
        "shared_base",
        "temperature",
        "min_p",
        "repetition_penalty",
        "schema",
        "continuous",
        "adapters",
        "additions",
    }
)
