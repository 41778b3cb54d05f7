"""Standard optimizers over torch."""

from __future__ import annotations

from collections.abc import Iterable

from finetooth_hooks import Optimizer, hookimpl

_OPTIMIZERS = (
    (
        "adamw",
        "Adam with decoupled weight decay",
        8.0,
        0.0,
        0.0,
        ("adam", "adamw_torch", "adamw_torch_fused", "adamw_hf"),
    ),
    ("optimi_adamw", "AdamW with optimi's defaults and fully decoupled decay", 8.0, 0.0, 0.0, ()),
    ("sgd", "stochastic gradient descent", 4.0, 4.0, 0.0, ()),
    ("adafactor", "Adafactor: second moments by row and column", 0.5, 4.0, 4.0, ()),
    ("lion", "Lion: the sign of a momentum", 4.0, 0.0, 4.0, ()),
)
"""Name, summary, bytes of a number (state, update, largest tensor), names elsewhere."""


@hookimpl
def ft_optimizers() -> Iterable[Optimizer]:
    """Five optimizers; their bytes are those of float32 parameters. AdamW updates in one pass if torch has a kernel for
    that, Lion one tensor after the other."""
    for name, summary, state, update, tensor, elsewhere in _OPTIMIZERS:
        yield Optimizer(
            name=name,
            build=f"finetooth_standard.optimizers:build_{name}",
            summary=summary,
            default=name == "adamw",
            state_bytes=state,
            update_bytes=update,
            tensor_bytes=tensor,
            elsewhere={other: {} for other in elsewhere},
        )
