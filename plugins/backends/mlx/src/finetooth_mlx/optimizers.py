"""MLX's own optimizers. `create` takes the trainable arrays by name; the optimizer's state is a tree with the same
names."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any

from finetooth_hooks import Context, OptimizerBase, Options, RecipeError
from finetooth_hooks.protocols import ModelFacts
from pydantic import Field

Beta = Annotated[float, Field(ge=0, lt=1)]
"""The decay rate of a running mean."""


SETTABLE = ("betas", "eps", "momentum", "weight_decay")
"""Options that a step may set."""


class OptimizerOptions(Options):
    """Options of all optimizers."""

    weight_decay: float = Field(default=0.0, ge=0)
    """Each step shrinks a weight by the share learning_rate * weight_decay (decoupled). `sgd` instead adds weight_decay
    times the weight to the gradient (the same without momentum)."""
    decay_norms: bool = False
    """Decay norms and biases (fewer than two dimensions) too."""


class AdamWOptions(OptimizerOptions):
    """Options of `adamw`."""

    learning_rate: float = Field(default=2e-4, gt=0)
    """Peak learning rate. The default suits low-rank adapters; full fine-tuning needs about a tenth."""
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    """Decay rates of the first and second moment."""
    eps: float = Field(default=1e-8, gt=0)
    """Added to the root of the second moment."""


class SgdOptions(OptimizerOptions):
    """Options of `sgd`."""

    learning_rate: float = Field(default=1e-2, gt=0)
    """Peak learning rate."""
    momentum: Beta = 0.0
    """Decay rate of the momentum; 0 keeps none."""
    nesterov: bool = False
    """Use Nesterov momentum; needs `momentum`."""


class AdafactorOptions(OptimizerOptions):
    """Options of `adafactor`."""

    learning_rate: float = Field(default=1e-2, gt=0)
    """Peak learning rate, relative: a tensor's update is this rate (at step t at most 1 / sqrt(t)) times the root mean
    square of its weights, at least 0.001. So the zero matrix of a new adapter starts slowly."""
    beta2_decay: float = Field(default=-0.8, lt=0)
    """The decay rate of the second moment at step t is 1 - t ** beta2_decay."""
    clip: float = Field(default=1.0, ge=1)
    """Updates with a larger root mean square are scaled down to it."""


class MuonOptions(OptimizerOptions):
    """Options of `muon`."""

    learning_rate: float = Field(default=2e-4, gt=0)
    """Peak learning rate, one that suits AdamW: a step along an (outputs, inputs) matrix is 0.2 * sqrt(max(outputs,
    inputs)) times as large, the usual size of AdamW's steps (Liu et al., 2025, arXiv:2502.16982)."""
    momentum: Beta = 0.95
    """Decay rate of the momentum of a matrix."""
    nesterov: bool = True
    """Use Nesterov momentum."""
    iterations: int = Field(default=5, ge=1, le=20)
    """Newton-Schulz iterations that make an update nearly orthonormal."""
    betas: tuple[Beta, Beta] = (0.9, 0.95)
    """Decay rates of AdamW, which updates all parameters other than matrices inside layers."""
    eps: float = Field(default=1e-8, gt=0)
    """AdamW's eps, added to the root of its second moment."""


class LionOptions(OptimizerOptions):
    """Options of `lion`."""

    learning_rate: float = Field(default=3e-5, gt=0)
    """Peak learning rate. Every weight moves by exactly this much, so take 3 to 10 times less than for AdamW."""
    betas: tuple[Beta, Beta] = (0.9, 0.99)
    """Weight of the momentum in the update, and decay rate of the momentum."""


@dataclass(frozen=True)
class MlxOptimizer(OptimizerBase):
    """`protocols.Optimizer` that makes an optimizer of `mlx.optimizers`.

    Attributes:
        make: from a weight decay to one of them.
        of_matrices: makes the optimizer of matrices inside layers.
        keeps: bytes of state per parameter.
    """

    options: OptimizerOptions
    learning_rate: float
    make: Callable[[float], Any]
    keeps: float
    of_matrices: Any = None

    def state_bytes(self, facts: ModelFacts) -> float | None:
        return self.keeps

    def create(self, named_parameters: Sequence[tuple[str, Any]]) -> Any:
        """One optimizer for matrices, which decay, and one for norms and biases; a single one if all have the same
        options.

        Raises:
            ValueError: nothing trains.
        """
        from mlx.optimizers import MultiOptimizer
        from mlx.utils import tree_unflatten

        if not named_parameters:
            raise ValueError("no parameter trains")
        decay = self.options.weight_decay
        undecayed = decay and not self.options.decay_norms and any(array.ndim < 2 for _, array in named_parameters)
        parts: list[tuple[Any, Any]] = [(self.make(decay), lambda _, array: array.ndim >= 2)]
        if undecayed:
            parts.append((self.make(0.0), None))
            parts[-1][0].undecayed = True
        if self.of_matrices is not None:
            parts.insert(0, (self.of_matrices, is_hidden_matrix))
        several = len(parts) > 1
        filters = [takes for _, takes in parts[:-1]]
        optimizer: Any = MultiOptimizer([part for part, _ in parts], filters) if several else parts[0][0]
        optimizer.init(tree_unflatten(list(named_parameters)))
        return optimizer


def decoupled(kind: Any) -> Any:
    """An optimizer of MLX with decoupled weight decay: a weight shrinks by learning_rate * weight_decay of itself."""

    class Decoupled(kind):  # type: ignore[misc]  # MLX's optimizers bring no types
        weight_decay: float

        def apply_single(self, gradient: Any, parameter: Any, state: Any) -> Any:
            decay: float = self.weight_decay
            self.weight_decay = 0.0
            moved = super().apply_single(gradient, parameter, state)
            self.weight_decay = decay
            return moved - self.learning_rate * decay * parameter

    return Decoupled


def is_hidden_matrix(name: str, array: Any) -> bool:
    """Whether a weight is a matrix inside a layer, and not a norm, a bias, an embedding or a head."""
    return array.ndim == 2 and not any(word in name for word in ("embed", "head", "score"))


def options_of(optimizer: Any) -> dict[str, float | tuple[float, ...]]:
    """The options that a step may set, by their names in a recipe."""
    first = getattr(optimizer, "optimizers", [optimizer])[0]
    values = {name: getattr(first, name) for name in SETTABLE if hasattr(first, name)}
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}


@contextmanager
def applied(optimizer: Any, options: Mapping[str, float | tuple[float, ...]]) -> Iterator[None]:
    """A `with` block in which the optimizer has these options; weights without decay keep a weight decay of 0."""
    parts = getattr(optimizer, "optimizers", [optimizer])
    before = [{name: getattr(part, name) for name in options} for part in parts]
    for part in parts:
        for name, value in options.items():
            if name != "weight_decay" or not hasattr(part, "undecayed"):
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


def build_adafactor(options: AdafactorOptions, context: Context) -> MlxOptimizer:
    """mlx.optimizers.Adafactor (Shazeer & Stern, 2018, arXiv:1804.04235) with a given learning rate and decoupled
    decay."""

    import mlx.core as mx
    from mlx.optimizers import Adafactor

    class Relative(Adafactor):  # type: ignore[misc]  # MLX's optimizers bring no types
        def _compute_learning_rate(self, step: Any, parameter_rms: Any) -> Any:
            rate = mx.minimum(self.learning_rate, mx.rsqrt(step.astype(mx.float32)))
            return rate * mx.maximum(self.eps[1], parameter_rms)

    def make(decay: float) -> Any:
        return decoupled(Relative)(
            options.learning_rate, clip_threshold=options.clip, decay_rate=options.beta2_decay, relative_step=False,
            weight_decay=decay,
        )  # fmt: skip

    return MlxOptimizer(options, options.learning_rate, make, 0.5)


def build_muon(options: MuonOptions, context: Context) -> MlxOptimizer:
    """mlx.optimizers.Muon (Jordan et al., 2024) with decoupled decay and steps of AdamW's size."""
    from mlx.optimizers import AdamW, Muon

    class Scaled(Muon):  # type: ignore[misc]  # MLX's optimizers bring no types
        def apply_single(self, gradient: Any, parameter: Any, state: Any) -> Any:
            outputs, inputs = parameter.shape
            mine = max(1.0, outputs / inputs) ** 0.5  # of MLX's steps
            moved = super().apply_single(gradient, parameter, state) - parameter
            return parameter + moved * (0.2 * max(outputs, inputs) ** 0.5 / mine)

    def make(decay: float) -> Any:
        return AdamW(
            options.learning_rate, betas=list(options.betas), eps=options.eps, weight_decay=decay, bias_correction=True
        )

    matrices = decoupled(Scaled)(
        options.learning_rate, options.momentum, weight_decay=options.weight_decay, nesterov=options.nesterov,
        ns_steps=options.iterations,
    )  # fmt: skip
    return MlxOptimizer(options, options.learning_rate, make, 8.0, matrices)
