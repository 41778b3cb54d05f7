"""Whether weights and optimizer are those of a whole step: an update that breaks off half way must not be kept."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from finetooth_hooks import EngineError
from torch import Tensor

ACTION = "resume from the last checkpoint"


class Wholeness:
    """Watches updates. What breaks one off (no memory, a second Ctrl-C) may have moved some of the weights, or only
    the optimizer's state.

    torch counts what its operations write to a tensor, so after an update by one of torch's own optimizers unchanged
    counts say that no weight has moved (the first update often breaks off there, making room for its state). What
    torch's fused kernels write is not counted; fused Adam and AdamW count their steps first, so there the steps'
    counts say it. Nothing counts what goes through `.data`, or what a kernel does that torch does not know, and
    optimizers of others may write so: an update of theirs that breaks off, or another fused one, counts as half done,
    whatever the counts say. Not seen: a hook of torch's optimizers (`register_step_pre_hook`) that writes through
    `.data`.
    """

    def __init__(self) -> None:
        self.weights = self.optimizer = True

    @contextmanager
    def update(self, optimizer: torch.optim.Optimizer, masters: Sequence[Tensor]) -> Iterator[None]:
        """Around one update of the masters."""
        before = _counts(optimizer, masters)
        try:
            yield
        except BaseException:
            self.optimizer = False
            unmoved = before == _counts(optimizer, masters)
            self.weights = self.weights and unmoved and _counted(optimizer)
            raise

    def broken(self) -> None:
        """Some of the weights were updated, and others will not be."""
        self.weights = self.optimizer = False

    def restored(self) -> None:
        """Everything was loaded again."""
        self.weights = self.optimizer = True

    def check_weights(self) -> None:
        """Checks that no update broke off while it changed weights.

        Raises:
            EngineError: an update broke off, and some of the weights had moved or may have.
        """
        if not self.weights:
            raise EngineError("the weights may be half updated: the last step broke off in its update", action=ACTION)

    def check_state(self) -> None:
        """Checks that weights and optimizer state are those of a whole step.

        Raises:
            EngineError: an update broke off; the optimizer's state may be that of no whole step.
        """
        self.check_weights()
        if not self.optimizer:
            raise EngineError(
                "the optimizer's state may be half updated: the last step broke off in its update", action=ACTION
            )


def _counts(optimizer: torch.optim.Optimizer, masters: Sequence[Tensor]) -> list[tuple[int, ...]]:
    """What changes as soon as a weight may have moved. A step that is not there yet begins as one nobody wrote to."""
    steps = [optimizer.state[master].get("step", 0) if master in optimizer.state else 0 for master in masters]
    return [
        (master._version, master.data_ptr(), step._version if isinstance(step, Tensor) else 0)
        for master, step in zip(masters, steps, strict=True)
    ]


def _counted(optimizer: torch.optim.Optimizer) -> bool:
    """Whether what the optimizer writes shows in `_counts`: the class itself is torch's, not one derived from it, and a
    group that a fused kernel updates is of one that counts its steps."""
    of_torch = type(optimizer).__module__.split(".")[:2] == ["torch", "optim"]
    fused = any(group.get("fused") for group in optimizer.param_groups)
    return of_torch and (not fused or type(optimizer) in (torch.optim.Adam, torch.optim.AdamW))
