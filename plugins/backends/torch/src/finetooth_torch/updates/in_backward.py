"""Updates inside the backward pass: each parameter updates as soon as its gradient is complete, which is then
dropped."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from finetooth_hooks import EngineError, NotFinite
from finetooth_steps.micro_batches import MicroBatch
from torch import Tensor, nn

from finetooth_torch.updates.parameters import TrainedParameters


class InBackward:
    """Updates parameters from autograd hooks, called as soon as a parameter's gradient is complete.

    Attributes:
        updated: how many parameters were updated since `begin`.

    Args:
        optimizer: over the masters of `parameters`; each of its steps updates the one parameter with a gradient.
    """

    def __init__(self, parameters: TrainedParameters, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer = optimizer
        self.updated, self._squares = 0, 0.0
        for name, live, master in zip(parameters.names, parameters.live, parameters.masters, strict=True):
            # after the hook that copies the gradient to the master, if there is one
            live.register_post_accumulate_grad_hook(self._updater(name, master))  # type: ignore[no-untyped-call]

    def begin(self) -> None:
        """Begin a step."""
        self.updated, self._squares = 0, 0.0

    @property
    def norm(self) -> float:
        """Global L2 norm of the gradients since `begin`."""
        return math.sqrt(self._squares)

    def _updater(self, name: str, master: nn.Parameter) -> Callable[[Tensor], None]:
        @torch.no_grad()
        def update(live: Tensor) -> None:
            gradient = master.grad
            if gradient is None:
                return
            norm = float(torch.linalg.vector_norm(gradient.float()))
            if not math.isfinite(norm):
                live.grad = master.grad = None
                raise self._not_finite(name, norm)
            self._squares += norm**2
            self.updated += 1
            self._optimizer.step()
            master.grad = None
            if live is not master:
                live.copy_(master)

        return update

    def _not_finite(self, name: str, norm: float) -> EngineError:
        what = f"the gradient of {name} has the norm {norm}"
        if not self.updated:
            return NotFinite(f"{what}; the weights are as before", action="lower optimizer.learning_rate")
        return EngineError(
            f"{what}, and {self.updated} parameters were updated before it: the weights belong to no whole step",
            action="resume from the last checkpoint with a lower optimizer.learning_rate",
        )


def check_whole(batches: tuple[MicroBatch, ...], accumulated: int) -> None:
    """Checks that a step has one backward only.

    Raises:
        EngineError: more than one backward in a step.
    """
    parts = sum(len(batch.pieces) or 1 for batch in batches)
    if accumulated or parts > 1:
        raise EngineError(
            "this optimizer updates inside backward, so a step is one micro-batch of one call; this one has "
            + (f"{parts} micro-batches" if parts > 1 else "a second call"),
            action="lower train.batch_size or train.max_length, or pick an optimizer that accumulates gradients",
        )
