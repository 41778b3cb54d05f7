"""MLX's own optimizers over the arrays that train: `create` takes them by name, and the state of what it makes is the
tree of those names."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any

from finetooth_hooks import Context, OptimizerBase, Options, RecipeError
from finetooth_hooks.protocols import ModelFacts
from pydantic import Field

Beta = Annotated[float, Field(ge=0, lt=1)]
"""How much a running mean keeps of itself in a step."""


SETTABLE = ("betas", "eps", "momentum", "weight_decay")
"""Options that a step may set."""


class OptimizerOptions(Options):
    """What all of them take."""

    weight_decay: float = Field(default=0.0, ge=0)
    """Each update shrinks a weight by learning_rate * weight_decay of itself, apart from the gradient. (`sgd` adds
    weight_decay times the weight to the gradient, which without momentum is the same.)"""
    decay_norms: bool = False
    """Decay norms and biases (everything with fewer than two dimensions) too."""


class AdamWOptions(OptimizerOptions):
    """Options of `adamw`."""

    learning_rate: float = Field(default=2e-4, gt=0)
    """Peak learning rate. The default suits adapters of low rank; whole models want about a tenth."""
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    """Decay of the first and second moment."""
    eps: float = Field(default=1e-8, gt=0)
    """Added to the root of the second moment."""


class SgdOptions(OptimizerOptions):
    """Options of `sgd`."""

    learning_rate: float = Field(default=1e-2, gt=0)
    """Peak learning rate."""
    momentum: Beta = 0.0
    """Decay of the running gradient; 0 keeps none."""
    nesterov: bool = False
    """Look ahead along the momentum; needs `momentum`."""


class LionOptions(OptimizerOptions):
    """Options of `lion`."""

    learning_rate: float = Field(default=3e-5, gt=0)
    """Peak learning rate; every weight moves by just this much, so take 3 to 10 times less than for AdamW."""
    betas: tuple[Beta, Beta] = (0.9, 0.99)
    """Weight of the momentum in the update, and its decay."""


@dataclass(frozen=True)
class MlxOptimizer(OptimizerBase):
    """`protocols.Optimizer` that makes an optimizer of `mlx.optimizers`.

    Attributes:
        make: from a weight decay to one of them.
        keeps: bytes of state per parameter.
    """

    options: OptimizerOptions
    learning_rate: float
    make: Callable[[float], Any]
    keeps: float

    def state_bytes(self, facts: ModelFacts) -> float | None:
        return self.keeps

    def create(self, named_parameters: Sequence[tuple[str, Any]]) -> Any:
        """One for matrices that decay and one for norms and biases, or, where all are alike, one.

        Raises:
            ValueError: nothing trains.
        """
        from mlx.optimizers import MultiOptimizer
        from mlx.utils import tree_unflatten

        if not named_parameters:
            raise ValueError("no parameter trains")
        decay = self.options.weight_decay
        apart = decay and not self.options.decay_norms and any(array.ndim < 2 for _, array in named_parameters)
        whole = [self.make(decay), self.make(0.0)]
        optimizer: Any = MultiOptimizer(whole, [lambda _, array: array.ndim >= 2]) if apart else whole[0]
        optimizer.init(tree_unflatten(list(named_parameters)))
        return optimizer


def options_of(optimizer: Any) -> dict[str, float | tuple[float, ...]]:
    """What a step may set of one that `create` made, by names of a recipe."""
    first = getattr(optimizer, "optimizers", [optimizer])[0]
    values = {name: getattr(first, name) for name in SETTABLE if hasattr(first, name)}
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}


@contextmanager
def applied(optimizer: Any, options: Mapping[str, float | tuple[float, ...]]) -> Iterator[None]:
    """While entered, it has these options; what does not decay keeps its weight decay of 0."""
    parts = getattr(optimizer, "optimizers", [optimizer])
    before = [{name: getattr(part, name) for name in options} for part in parts]
    for place, part in enumerate(parts):
        for name, value in options.items():
            if name != "weight_decay" or place == 0:
                setattr(part, name, list(value) if isinstance(value, tuple) else value)
    try:
        yield
    finally:
        for part, own in zip(parts, before, strict=True):
            for name, value in own.items():
                setattr(part, name, value)


def build_adamw(options: AdamWOptions, context: Context) -> MlxOptimizer:
    """mlx.optimizers.AdamW (Loshchilov & Hutter, 2019, arXiv:1711.05101), with bias correction."""

    def make(decay: float) -> Any:
        from mlx.optimizers import AdamW

        return AdamW(
            options.learning_rate, betas=list(options.betas), eps=options.eps, weight_decay=decay, bias_correction=True
        )

    return MlxOptimizer(options, options.learning_rate, make, 8.0)


def build_sgd(options: SgdOptions, context: Context) -> MlxOptimizer:
    """mlx.optimizers.SGD.

    Raises:
        RecipeError: `nesterov` without `momentum`.
    """
    if options.nesterov and not options.momentum:
        raise RecipeError("optimizer.nesterov", "needs momentum", action="set optimizer.momentum, 0.9 for instance")

    def make(decay: float) -> Any:
        from mlx.optimizers import SGD

        return SGD(options.learning_rate, momentum=options.momentum, weight_decay=decay, nesterov=options.nesterov)

    return MlxOptimizer(options, options.learning_rate, make, 4.0)


def build_lion(options: LionOptions, context: Context) -> MlxOptimizer:
    """mlx.optimizers.Lion (Chen et al., 2023, arXiv:2302.06675)."""

    def make(decay: float) -> Any:
        from mlx.optimizers import Lion

        return Lion(options.learning_rate, betas=list(options.betas), weight_decay=decay)

    return MlxOptimizer(options, options.learning_rate, make, 4.0)
