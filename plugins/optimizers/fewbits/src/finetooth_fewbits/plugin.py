"""Optimizers with states in few bits."""

from __future__ import annotations

from collections.abc import Iterable

from finetooth_hooks import Optimizer, hookimpl

_BLOCKWISE, _PAGED = frozenset({"cpu", "cuda", "xpu"}), frozenset({"cuda"})
_OPTIMIZERS = (
    ("adamw_8bit", "AdamW with moments in 8 bits", 8.0, 20.0, _BLOCKWISE, ("adamw_bnb_8bit", "adam8bit", "adamw8bit")),
    ("lion_8bit", "Lion with a momentum in 8 bits", 4.0, 20.0, _BLOCKWISE, ("lion8bit",)),
    ("paged_adamw", "AdamW whose moments leave the GPU when it is full", 8.0, 0.0, _PAGED, ("paged_adamw_32bit",)),
    ("paged_adamw_8bit", "AdamW with moments in 8 bits, which leave the GPU when it is full", 8.0, 0.0, _PAGED, ()),
)
"""Name, summary, bytes of a number (state, largest tensor), devices, names elsewhere."""


@hookimpl
def ft_optimizers() -> Iterable[Optimizer]:
    """The entries. `state_bytes` applies to small tensors, whose states stay in fp32; for full fine-tuning the plan
    counts with the model's sizes."""
    for name, summary, state, tensor, devices, elsewhere in _OPTIMIZERS:
        yield Optimizer(
            name=name,
            build=f"finetooth_fewbits.optimizers:build_{name}",
            summary=summary,
            state_bytes=state,
            tensor_bytes=tensor,
            devices=devices,
            elsewhere={other: {} for other in elsewhere},
        )
