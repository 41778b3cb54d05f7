"""Updates of a step: after its backward pass or inside it, of all parameters or of blocks in turn."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from finetooth_hooks import EngineError, NotFinite
from finetooth_hooks.engine import StepSettings
from finetooth_hooks.protocols import EngineRequest
from finetooth_steps.micro_batches import MicroBatch

from finetooth_torch.state.optimizer import Options
from finetooth_torch.state.update_guard import Wholeness
from finetooth_torch.updates.in_backward import InBackward, check_whole
from finetooth_torch.updates.parameters import TrainedParameters
from finetooth_torch.updates.scaler import LossScaler
from finetooth_torch.updates.settings import applied, check_settings, rate_shares, set_rates


class Updater:
    """Applies gradients by the request's optimizer, as its capabilities ask.

    Attributes:
        whole: whether weights and optimizer are those of a whole step.
        changes: how often the model's weights have changed.

    Args:
        optimizer: over the masters of `parameters`.
        group_options: of its parameter groups at the start.
    """

    def __init__(
        self,
        request: EngineRequest,
        parameters: TrainedParameters,
        optimizer: torch.optim.Optimizer,
        scaler: LossScaler,
        group_options: tuple[Options, ...],
    ) -> None:
        self._parameters, self._optimizer, self._scaler = parameters, optimizer, scaler
        self._summed: Any = parameters if request.place.shard_optimizer is None else optimizer
        self._updates, self._max_grad_norm = request.updates, request.plan.train.max_grad_norm
        self._rate_shares = rate_shares(group_options, request.updates.optimizer.learning_rate)
        words = request.updates.optimizer.capabilities
        self._in_turn, self._averages = "in_turn" in words, "averages" in words
        self._in_backward = InBackward(parameters, optimizer) if "in_backward" in words else None
        self.whole = Wholeness()
        self.changes = 0

    @property
    def in_backward(self) -> bool:
        """Whether a step's update is made in its backward."""
        return self._in_backward is not None

    def rate(self, step: int, total: int | None) -> float:
        """The learning rate of update number `step` (0-based) of `total`, as the recipe has it."""
        return self._updates.optimizer.learning_rate * self._updates.schedule.factor(step, total)

    def check(self, settings: StepSettings) -> None:
        """Checks the settings of a step.

        Raises:
            EngineError: an option that the optimizer does not have, an invalid number, or any option after the update
                was made.
        """
        check_settings(settings, self._optimizer)
        if self.in_backward and settings != StepSettings():
            raise EngineError(
                "step: the optimizer has made the update inside backward, before these settings were given",
                action="set them in the recipe, or pick another optimizer",
            )

    @contextmanager
    def around_backward(
        self, batches: tuple[MicroBatch, ...], accumulated: int, rate: Callable[[], float]
    ) -> Iterator[None]:
        """Prepare a backward pass for optimizers that need gradients of some parameters only, or updates inside it.

        Args:
            batches: of the backward pass.
            accumulated: calls whose gradients wait for the step.

        Raises:
            EngineError: a step has more than one backward pass, and the optimizer cannot accumulate gradients.
        """
        if self._in_turn:
            active = {id(parameter) for parameter in self._updates.optimizer.active(self._optimizer)}
            for live, master in zip(self._parameters.live, self._parameters.masters, strict=True):
                live.requires_grad_(id(master) in active)
        if self._in_backward is None:
            yield
            return
        check_whole(batches, accumulated)
        set_rates(self._optimizer, rate(), self._rate_shares)
        self._in_backward.begin()
        self.changes += 1
        try:
            yield
        except BaseException:
            if self._in_backward.updated:
                self.whole.broken()
            raise

    def update(
        self, settings: StepSettings, rate: float, step: int, rows: Callable[[], tuple[str, ...]]
    ) -> tuple[float, bool]:
        """Clip and update.

        Args:
            step: its number, counted from 1.
            rows: ids of the data that gave the gradients.

        Returns:
            The gradients' norm, and whether an overflow skipped the update.

        Raises:
            NotFinite: the norm is not finite, and no loss scale can be lowered.
        """
        if self._in_backward is not None:
            self.changes += 1  # an adapter may change weights after it
            return self._in_backward.norm, False
        parameters, optimizer, scaler, summed = self._parameters, self._optimizer, self._scaler, self._summed
        limit = self._max_grad_norm if settings.max_grad_norm is None else settings.max_grad_norm
        norm = summed.norm()
        overflow = not math.isfinite(norm)
        if overflow and not scaler.can_lower:
            lowest = ", at the lowest loss scale too" if scaler.enabled else ""
            raise NotFinite(
                f"the gradient norm is {norm} at step {step}{lowest}; the gradients were dropped, the weights are as "
                "before",
                action="lower optimizer.learning_rate, or set train.precision to "
                + ("bf16 or fp32" if scaler.enabled else "fp32"),
                rows=rows(),
            )
        self.changes += 1
        if not overflow:
            if limit > 0:
                summed.clip(limit, norm)
            set_rates(optimizer, rate, self._rate_shares)
            with applied(settings, optimizer), self.whole.update(optimizer, parameters.masters):
                optimizer.step()
                parameters.publish()
        scaler.update(overflow=overflow)
        return norm, overflow

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside the `with` block, the model computes with the weights to evaluate and to save."""
        if not self._averages:
            yield
            return
        self._averages = False  # nested: nothing to do
        try:
            with self._updates.optimizer.averaged(self._optimizer):
                self.changes += 1
                self._parameters.publish()
                yield
        finally:
            self._averages = True
            self.changes += 1
            self._parameters.publish()
