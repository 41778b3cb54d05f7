"""What applies gradients: optimizers, and schedules of the learning rate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from finetooth_hooks.models import ModelFacts


class Optimizer(Protocol):
    """Makes the framework's optimizer. One derives from `finetooth_hooks.OptimizerBase`."""

    @property
    def capabilities(self) -> frozenset[str]:
        """What it does beyond the least, or asks for: words of `finetooth_hooks.capabilities.OPTIMIZER`."""
        ...

    @property
    def learning_rate(self) -> float:
        """The base rate, which the schedule's factor multiplies."""
        ...

    def create(self, named_parameters: Sequence[tuple[str, Any]]) -> Any:
        """The framework's optimizer over the parameters that train: for torch a torch.optim.Optimizer; for mlx an
        mlx.optimizers.Optimizer whose state has begun with the tree of these names.

        Its parameter groups may have learning rates of their own, one of them `learning_rate`: each keeps its share of
        what the schedule, or a step, sets. Groups that are all alike take the rate as it is.
        """
        ...

    def state_bytes(self, facts: ModelFacts) -> float | None:
        """Bytes of state for each weight of a model that trains whole, where that depends on the sizes of its matrices
        (states of low rank). None: the `state_bytes` of its entry."""
        ...

    def averaged(self, optimizer: Any) -> AbstractContextManager[None]:
        """Inside the `with` block, the parameters of an optimizer that `create` made hold the weights to evaluate and
        to keep; afterwards those at which gradients are taken again, bit for bit. Capability `averages`."""
        ...

    def active(self, optimizer: Any) -> Sequence[Any]:
        """The parameters that the next update of an optimizer that `create` made will train; gradients of the others
        are not asked for. Capability `in_turn`."""
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
