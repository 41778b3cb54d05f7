"""Optimizers, and schedules of the learning rate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from finetooth_hooks.models import ModelFacts


class Optimizer(Protocol):
    """Makes the framework's optimizer. One derives from `finetooth_hooks.OptimizerBase`."""

    @property
    def capabilities(self) -> frozenset[str]:
        """Its abilities and needs, from `finetooth_hooks.capabilities.OPTIMIZER`."""
        ...

    @property
    def learning_rate(self) -> float:
        """The base rate, which the schedule's factor multiplies."""
        ...

    def create(self, named_parameters: Sequence[tuple[str, Any]]) -> Any:
        """The framework's optimizer over the trained parameters: for torch a torch.optim.Optimizer; for mlx an
        mlx.optimizers.Optimizer with its state initialised for the tree of these names.

        Its parameter groups may have different learning rates, one of them `learning_rate`: each keeps its ratio to the
        rate that the schedule, or a step, sets.
        """
        ...

    def state_bytes(self, facts: ModelFacts) -> float | None:
        """Bytes of state per weight of a fully trained model, if that depends on the sizes of its matrices (low-rank
        states). None: the `state_bytes` of its entry."""
        ...

    def averaged(self, optimizer: Any) -> AbstractContextManager[None]:
        """Inside the `with` block, the parameters of an optimizer from `create` hold the weights to evaluate and save;
        afterwards again, bit for bit, those for gradients. Capability `averages`."""
        ...

    def active(self, optimizer: Any) -> Sequence[Any]:
        """The parameters that the next update of an optimizer from `create` will train; the others need no gradients.
        Capability `in_turn`."""
        ...


class Schedule(Protocol):
    """Learning-rate factor by step."""

    def factor(self, step: int, total: int | None) -> float:
        """Factor for the update number `step` (0-based) of `total`.

        Raises:
            RecipeError: it needs a total and there is none.
        """
        ...

    def observe(self, metrics: Mapping[str, float]) -> None:
        """Called after every step with the latest metrics (`loss`, `eval/loss`, ...)."""
        ...

    def state(self) -> Mapping[str, Any]: ...
    def restore(self, state: Mapping[str, Any]) -> None: ...
