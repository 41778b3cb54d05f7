"""Optimizers with smaller states per weight than Adam's two moments."""

from __future__ import annotations

from collections.abc import Iterable

from finetooth_hooks import Optimizer, hookimpl

_FLASH = (
    ("flash_adamw", "AdamW with companded moments in 8 bits", 2.2, 8, 10.5, ()),
    ("flash_adam", "Adam with companded moments in 8 bits; weight decay is part of the gradient", 2.2, 8, 14.5, ()),
    ("flash_sgd", "SGD with a companded momentum in 8 bits; weight decay is part of the gradient", 1.1, 8, 10.5, ()),
    ("flash_sgdw", "SGD with a companded momentum in 8 bits and decoupled weight decay", 1.1, 8, 6.5, ()),
    ("flash_lion", "Lion with a companded momentum in 8 bits", 1.1, 8, 10.5, ()),
)
_OPTIMIZERS = (
    ("galore", "Adam in a subspace of each gradient", 12, 4, 8, ("galore_adamw", "galore_adamw_layerwise")),
    (
        "galore_8bit",
        "Adam in a subspace of each gradient, with moments in 8 bits",
        *(12, 8, 16),
        ("galore_adamw_8bit", "galore_adamw_8bit_layerwise"),
    ),
    ("apollo", "APOLLO: scales gradients by what Adam does to a random projection of them", 8, 4, 8, ("apollo_adamw",)),
    ("apollo_mini", "APOLLO of rank 1: about the memory of SGD", 8, 4, 8, ()),
    ("adam_mini", "Adam with one second moment for each output of a layer", 5, 4, 4, ()),
    ("adamw_4bit", "AdamW with moments in 4 bits", 8, 8, 10, ("adamw4bit",)),
)
"""Name, summary, bytes of a number (state, update, largest tensor), names elsewhere; `_FLASH` too."""


@hookimpl
def ft_optimizers() -> Iterable[Optimizer]:
    """The entries. `state_bytes` is for small matrices, which save nothing; for full fine-tuning the plan counts with
    the model's sizes."""
    for name, summary, state, update, tensor, elsewhere in (*_OPTIMIZERS, *_FLASH):
        module = "flash_optimizers" if name.startswith("flash") else "optimizers"
        yield Optimizer(
            name=name,
            build=f"finetooth_lowmemory.{module}:build_{name}",
            summary=summary,
            state_bytes=state,
            update_bytes=update,
            tensor_bytes=tensor,
            elsewhere={other: {} for other in elsewhere},
        )
