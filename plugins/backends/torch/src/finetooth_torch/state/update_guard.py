"""Whether weights and optimizer are those of a whole step: a half-done update must not be saved."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from finetooth_hooks import EngineError
from torch import Tensor

ACTION = "resume from the last checkpoint"


class Wholeness:
    """Watches updates. An interruption (no memory, a second Ctrl-C) may leave some weights changed, or only the
    optimizer's state.

    torch counts its operations' writes to a tensor, so with torch's own optimizers unchanged counts mean that no weight
    changed (the first update often stops there, allocating its state). Fused kernels' writes are not counted; fused
    Adam and AdamW count their steps first, so their step counts show it. Writes through `.data` or by unknown kernels
    are not counted, and other optimizers may use them: their interrupted updates, and those of other fused ones, always
    count as half done. The counts miss a hook of torch's optimizers (`register_step_pre_hook`) that writes through
    `.data`.
    """

    def __init__(self) -> None:
        self.weights = self.optimizer = True

    @contextmanager
    def update(self, optimizer: torch.optim.Optimizer, masters: Sequence[Tensor]) -> Iterator[None]:
        """Watch one update of the masters."""
        before = _counts(optimizer, masters)
        try:
            yield
        except BaseException:
            self.optimizer = False
            unmoved = before == _counts(optimizer, masters)
            self.weights = self.weights and unmoved and _counted(optimizer)
            raise

    def broken(self) -> None:
        """Note that some weights were updated, and others will not be."""
        self.weights = self.optimizer = False

    def restored(self) -> None:
        """Note that everything was loaded again."""
        self.weights = self.optimizer = True

    def check_weights(self) -> None:
        """Check that no update was interrupted while it changed weights.

        Raises:
            EngineError: an update was interrupted, and some weights changed or may have.
        """
        if not self.weights:
            raise EngineError("the weights may be half updated: the last step broke off in its update", action=ACTION)

    def check_state(self) -> None:
        """Checks that weights and optimizer state are those of a whole step.

        Raises:
            EngineError: an update was interrupted; the optimizer's state may be that of no whole step.
        """
        self.check_weights()
        if not self.optimizer:
            raise EngineError(
                "the optimizer's state may be half updated: the last step broke off in its update", action=ACTION
            )


def _counts(optimizer: torch.optim.Optimizer, masters: Sequence[Tensor]) -> list[tuple[int, ...]]:
    """Counts that change as soon as a weight may have changed. A missing step count begins as an unwritten one."""
    steps = [optimizer.state[master].get("step", 0) if master in optimizer.state else 0 for master in masters]
    return [
        (master._version, master.data_ptr(), step._version if isinstance(step, Tensor) else 0)
        for master, step in zip(masters, steps, strict=True)
    ]


def _counted(optimizer: torch.optim.Optimizer) -> bool:
    """Whether `_counts` shows the optimizer's writes: the class is torch's own, not derived, and its fused groups count
    steps."""
    of_torch = type(optimizer).__module__.split(".")[:2] == ["torch", "optim"]
    fused = any(group.get("fused") for group in optimizer.param_groups)
    return of_torch and (not fused or type(optimizer) in (torch.optim.Adam, torch.optim.AdamW))
