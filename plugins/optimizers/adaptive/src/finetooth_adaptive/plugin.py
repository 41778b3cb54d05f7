"""Optimizers with other rules than AdamW's for the rate of each weight."""

from __future__ import annotations

from collections.abc import Iterable

from finetooth_hooks import Optimizer, hookimpl

_OPTIMIZERS = (
    ("ademamix", "AdamW with a second, slow momentum", 12, 8, ()),
    ("adopt", "Adam that converges for any beta2", 8, 8, ("adopt_adamw",)),
    ("came", "Adafactor with momentum, and smaller steps where it is uncertain", 5, 20, ("came_pytorch",)),
    ("prodigy", "AdamW that finds its learning rate by itself", 16, 8, ()),
    ("sophia", "momentum divided by the curvature, clipped at 1", 8, 8, ("sophia_g", "sophiag")),
)
"""Name, summary, bytes of a float32 number (state, largest tensor), names elsewhere."""


@hookimpl
def ft_optimizers() -> Iterable[Optimizer]:
    """The five optimizers of the table."""
    for name, summary, state, tensor, elsewhere in _OPTIMIZERS:
        yield Optimizer(
            name=name,
            build=f"finetooth_adaptive.optimizers:build_{name}",
            summary=summary,
            state_bytes=state,
            update_bytes=4.0,
            tensor_bytes=tensor,
            elsewhere={other: {} for other in elsewhere},
        )
