"""Optimizers of bitsandbytes: options and sizes of states. bitsandbytes is imported when one is built."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from finetooth_hooks.protocols import ModelFacts
from finetooth_toolbox.llama_shape import layer_matrices
from finetooth_torchshared.optimizers import Groups, MomentsOptions, SignOptions, TorchOptimizer

if TYPE_CHECKING:
    import torch

SMALL = 4096
"""Tensors with fewer numbers keep a state in fp32, as in bitsandbytes."""
BLOCK = 256
"""Count of numbers that share a scale."""
CODES = 256 * 4
"""Bytes of the table of a state's values, which bitsandbytes stores for every tensor."""


class AdamW8bitOptions(MomentsOptions):
    """Options of `adamw_8bit`, `paged_adamw` and `paged_adamw_8bit`."""


class Lion8bitOptions(SignOptions):
    """Options of `lion_8bit`."""


def build_adamw_8bit(options: AdamW8bitOptions) -> TorchOptimizer:
    """bitsandbytes' AdamW8bit (Dettmers et al., 2022, arXiv:2110.02861)."""
    return _optimizer("AdamW8bit", options, partial(_keeps, 2), eps=options.eps)


def build_lion_8bit(options: Lion8bitOptions) -> TorchOptimizer:
    """bitsandbytes' Lion8bit."""
    return _optimizer("Lion8bit", options, partial(_keeps, 1))


def build_paged_adamw(options: AdamW8bitOptions) -> TorchOptimizer:
    """bitsandbytes' PagedAdamW (Dettmers et al., 2023, QLoRA, arXiv:2305.14314, section 3)."""
    return _optimizer("PagedAdamW", options, None, eps=options.eps, obstacle=_PAGED)


def build_paged_adamw_8bit(options: AdamW8bitOptions) -> TorchOptimizer:
    """bitsandbytes' PagedAdamW8bit."""
    return _optimizer("PagedAdamW8bit", options, partial(_keeps, 2), eps=options.eps, obstacle=_PAGED)


_PAGED = "the driver moves its state already"


def _keeps(states: int, facts: ModelFacts) -> float:
    """Bytes of state per weight of a whole model.

    Args:
        states: count of numbers per weight.
    """
    inside = [outputs * inputs for inputs, outputs in layer_matrices(facts)]
    sizes = [*inside, *[facts.vocab_size * facts.hidden_size] * (1 if facts.tied else 2)]
    total = sum(4 * n if n < SMALL else n + 4 * -(-n // BLOCK) + CODES for n in sizes)
    return states * total / sum(sizes)


def _optimizer(kind: str, options: Any, keeps: Any, *, obstacle: str = "", **more: float) -> TorchOptimizer:
    def make(groups: Groups) -> torch.optim.Optimizer:
        import bitsandbytes
        from finetooth_torchshared.build import check_bitsandbytes

        check_bitsandbytes(str(groups[0]["params"][0].device), "optimizer", "adamw")
        made: torch.optim.Optimizer = getattr(bitsandbytes.optim, kind)(
            groups, lr=options.learning_rate, betas=options.betas, **more
        )
        return made

    return TorchOptimizer(
        options=options, learning_rate=options.learning_rate, make=make, keeps=keeps, obstacle=obstacle
    )
