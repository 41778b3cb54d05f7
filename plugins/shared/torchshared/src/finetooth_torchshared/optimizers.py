"""What makes a torch optimizer for a recipe: the options all of them take, and which parameters decay."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from finetooth_hooks import OptimizerBase, Options, RecipeError
from finetooth_hooks.protocols import ModelFacts
from pydantic import Field

if TYPE_CHECKING:
    import torch

Beta = Annotated[float, Field(ge=0, lt=1)]
"""How much a running mean keeps of itself in a step."""
Groups = list[dict[str, Any]]
Named = tuple[str, Any]
ONE_PASS = frozenset({"cpu", "cuda", "mps", "xpu"})
"""Types of devices with a fused AdamW in torch, which makes one pass over the memory without temporaries. The fixed
list keeps the choice the same for all versions of torch."""


class OptimizerOptions(Options):
    """Options that all optimizers share."""

    weight_decay: float = Field(default=0.0, ge=0)
    """Each step shrinks a weight by the share learning_rate * weight_decay (decoupled). `sgd`, `flash_sgd` and
    `flash_adam` instead add weight_decay times the weight to the gradient (the same for SGD without momentum)."""
    decay_norms: bool = False
    """Decay norms and biases (fewer than two dimensions) too."""
    rounding: Literal["nearest", "stochastic", "corrected"] = "nearest"
    """How weights are rounded to bf16. `nearest` rounds from an fp32 copy that is kept as well. `stochastic` keeps no
    copy (4 bytes less for each trained weight) and rounds up or down at random, so that updates too small for bf16
    still count on average. `corrected` keeps no copy, but stores the rounding error in 8 bits (3 bytes less)."""
    rounding_seed: int = Field(default=0, ge=0)
    """Seed of the stochastic rounding."""
    offload: Literal["none", "cpu", "disk"] = "none"
    """Where the optimizer state lies between steps: on the device (`none`), in host memory (`cpu`), or in files of the
    temporary folder TMPDIR (`disk`). The numbers are the same; a step takes longer."""


class MomentsOptions(OptimizerOptions):
    """Options of AdamW and of what keeps its two moments in fewer bits."""

    learning_rate: float = Field(default=2e-4, gt=0)
    """Peak learning rate, as for AdamW."""
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    """Decay rates of the first and second moment."""
    eps: float = Field(default=1e-8, gt=0)
    """Added to the root of the second moment."""


class SignOptions(OptimizerOptions):
    """Options of Lion, which steps along the sign of a momentum."""

    learning_rate: float = Field(default=3e-5, gt=0)
    """Peak learning rate. Every weight moves by exactly this much, so take 3 to 10 times less than for AdamW."""
    betas: tuple[Beta, Beta] = (0.9, 0.99)
    """Weight of the momentum in the update, and decay rate of the momentum."""


@dataclass(frozen=True, kw_only=True)
class TorchOptimizer(OptimizerBase):
    """`protocols.Optimizer` that makes a torch optimizer.

    Attributes:
        options: what the recipe says of every optimizer.
        learning_rate: the base rate.
        make: from parameter groups to the optimizer.
        apart: by a parameter's name and itself, a group it belongs to; parameters of different groups are never in
            one, and each group has what `apart` said as its `kind`. None: nothing else divides them.
        keeps: bytes of state for each weight of a model that trains whole, by its facts; None: as the entry says.
        words: capabilities in addition to those that follow from the options.
        average: inside, the parameters of the optimizer are averages (`averages`).
        turn: the parameters that its next update trains (`in_turn`).
        obstacle: why it cannot be stepped for one parameter after the other, as its state elsewhere and weights
            without copies would need; empty: it can.

    Raises:
        RecipeError: options that do not go together.
    """

    options: OptimizerOptions
    learning_rate: float
    make: Callable[[Groups], torch.optim.Optimizer]
    apart: Callable[[str, Any], str] | None = None
    keeps: Callable[[ModelFacts], float] | None = None
    words: frozenset[str] = frozenset()
    average: Callable[[torch.optim.Optimizer], AbstractContextManager[None]] | None = None
    turn: Callable[[torch.optim.Optimizer], Sequence[Any]] | None = None
    obstacle: str = ""

    def __post_init__(self) -> None:
        for option, plain in (("rounding", "nearest"), ("offload", "none")):
            value = getattr(self.options, option)
            if self.obstacle and value != plain:
                raise RecipeError(
                    f"optimizer.{option}", f"{value} cannot be: {self.obstacle}",
                    action=f"leave it out ({plain}), or pick another optimizer",
                )  # fmt: skip
        if self.options.rounding != "nearest" and self.average is not None:
            raise RecipeError(
                "optimizer.rounding",
                f"{self.options.rounding} cannot be: averages of weights in bf16 would lose what they average",
                action="leave it out (nearest), or pick another optimizer",
            )  # fmt: skip

    @property
    def capabilities(self) -> frozenset[str]:
        words = {"cpu": {"host_state"}, "disk": {"disk_state"}}.get(self.options.offload, set())
        words |= {"masterless"} if self.options.rounding != "nearest" else set()
        words |= {"corrected"} if self.options.rounding == "corrected" else set()
        words |= {"averages"} if self.average is not None else set()
        words |= {"in_turn"} if self.turn is not None else set()
        return self.words | words

    def averaged(self, optimizer: torch.optim.Optimizer) -> AbstractContextManager[None]:
        return super().averaged(optimizer) if self.average is None else self.average(optimizer)

    def active(self, optimizer: torch.optim.Optimizer) -> Sequence[Any]:
        return super().active(optimizer) if self.turn is None else self.turn(optimizer)

    def state_bytes(self, facts: ModelFacts) -> float | None:
        return None if self.keeps is None else self.keeps(facts)

    def create(self, named_parameters: Sequence[Named]) -> torch.optim.Optimizer:
        """Group the parameters (by kind; decayed ones, then norms and biases; empty groups left out) and make the
        optimizer.

        Raises:
            ValueError: nothing trains.
        """
        kinds: dict[str, list[Named]] = {}
        for name, parameter in named_parameters:
            kinds.setdefault(self.apart(name, parameter) if self.apart else "", []).append((name, parameter))
        groups: Groups = []
        for kind, members in sorted(kinds.items()):
            decayed = [p for _, p in members if self.options.decay_norms or p.ndim >= 2]
            rest = [p for _, p in members if not (self.options.decay_norms or p.ndim >= 2)]
            for parameters, decay in ((decayed, self.options.weight_decay), (rest, 0.0)):
                if parameters:
                    made = {"params": parameters, "weight_decay": decay}
                    groups.append({**made, "kind": kind} if self.apart else made)
        if not groups:
            raise ValueError("no parameter trains")
        return self._surrounded(self.make(groups))

    def _surrounded(self, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
        """The optimizer itself, or, where its state or its weights need it, one parameter at a time."""
        options = self.options
        if options.rounding == "nearest" and options.offload == "none":
            return optimizer
        from finetooth_torchshared.offloaded import PLACES
        from finetooth_torchshared.one_by_one import Around, OneByOne, corrected, lent, rounded_by_chance

        around: list[Around] = []
        keep = None
        if options.offload != "none":
            keep = PLACES[options.offload]()
            around.append(lent(keep))
        if options.rounding == "stochastic":
            around.append(rounded_by_chance(options.rounding_seed))
        if options.rounding == "corrected":
            around.append(corrected)
        return OneByOne(optimizer, around, keep)


def adamw(groups: Groups, *, learning_rate: float, betas: tuple[float, float], eps: float) -> torch.optim.Optimizer:
    """torch's AdamW. It uses the fused kernel (one pass over the memory, no temporaries) if the device has it; else it
    updates all tensors of a group at once."""
    import torch

    devices = {p.device.type for group in groups for p in group["params"]}
    how: dict[str, Any] = {"fused": True} if devices <= ONE_PASS else {"foreach": True}
    optimizer = torch.optim.AdamW(groups, lr=learning_rate, betas=betas, eps=eps, **how)
    if "fused" in how:
        optimizer.register_step_pre_hook(_lay_alike)
    return optimizer


def _lay_alike(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
    """Give gradients the memory layout of their weights: torch's fused kernels ignore strides, so another layout would
    add a gradient to the wrong weights, or is refused."""
    import torch

    for group in optimizer.param_groups:
        for p in group["params"]:
            if p.grad is not None and p.grad.stride() != p.stride():
                p.grad = torch.empty_like(p).copy_(p.grad)


def is_hidden_matrix(name: str, parameter: Any) -> bool:
    """Whether a parameter is a matrix inside a layer: neither a norm or a bias, nor an embedding or a head, whose rows
    belong to tokens."""
    if parameter.ndim != 2:
        return False
    return not any(word in part for part in name.split(".") for word in ("embed", "wte", "wpe", "head"))


__all__ = ["Beta", "OptimizerOptions", "TorchOptimizer", "adamw", "is_hidden_matrix"]
