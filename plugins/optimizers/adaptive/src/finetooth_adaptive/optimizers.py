"""Adaptive optimizers: options and sizes of states. torch is imported when one is built."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from finetooth_hooks.protocols import ModelFacts
from finetooth_toolbox.llama_shape import layer_matrices
from finetooth_torchshared.optimizers import Beta, Groups, OptimizerOptions, TorchOptimizer
from pydantic import Field

if TYPE_CHECKING:
    import torch


class AdEMAMixOptions(OptimizerOptions):
    """Options of `ademamix`."""

    learning_rate: float = Field(default=1e-4, gt=0)
    """Peak learning rate: that of AdamW or a little less."""
    betas: tuple[Beta, Beta, Beta] = (0.9, 0.999, 0.9999)
    """Decay rates of the fast momentum, the second moment and the slow momentum."""
    alpha: float = Field(default=5.0, ge=0)
    """Weight of the slow momentum, which is added to the fast one."""
    slow_warmup: int = Field(default=0, ge=0)
    """Steps over which `alpha` and the decay rate of the slow momentum grow to their values; 0: no warm-up."""
    eps: float = Field(default=1e-8, gt=0)
    """Added to the root of the second moment."""


class AdoptOptions(OptimizerOptions):
    """Options of `adopt`."""

    learning_rate: float = Field(default=2e-4, gt=0)
    """Peak learning rate, as for AdamW."""
    betas: tuple[Beta, Beta] = (0.9, 0.9999)
    """Decay rates of the momentum and the second moment."""
    eps: float = Field(default=1e-6, gt=0)
    """Smallest divisor of a gradient."""


class CameOptions(OptimizerOptions):
    """Options of `came`."""

    learning_rate: float = Field(default=2e-4, gt=0)
    """Peak learning rate, as for AdamW."""
    betas: tuple[Beta, Beta, Beta] = (0.9, 0.999, 0.9999)
    """Decay rates of the momentum, the second moment, and the distance of updates from the momentum."""
    clip: float = Field(default=1.0, gt=0)
    """Updates with a larger root mean square are scaled down to it before they enter the momentum."""
    eps: tuple[float, float] = (1e-30, 1e-16)
    """Added to squared gradients, and to squared distances."""


class ProdigyOptions(OptimizerOptions):
    """Options of `prodigy`."""

    learning_rate: float = Field(default=1.0, gt=0)
    """Factor of the estimated learning rate; leave it, and let the schedule shape it."""
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    """Decay rates of the first and second moment."""
    eps: float = Field(default=1e-8, gt=0)
    """Added to the root of the second moment."""
    first: float = Field(default=1e-6, gt=0)
    """Initial learning rate (d0 in the paper)."""
    growth: float = Field(default=1.0, gt=0)
    """Factor of each estimate of the learning rate; 2 or 0.5 make the whole run bolder or more careful."""


class SophiaOptions(OptimizerOptions):
    """Options of `sophia`."""

    learning_rate: float = Field(default=2e-4, gt=0)
    """Peak learning rate: no weight moves farther than this in a step."""
    betas: tuple[Beta, Beta] = (0.965, 0.99)
    """Decay rates of the momentum and the curvature."""
    gamma: float = Field(default=0.05, gt=0)
    """Factor of the curvature; with smaller values more weights move by the full rate."""
    targets: int = Field(default=4096, ge=1)
    """Number of targets in a step, over which its gradient is a mean (B in the paper's estimate B g^2)."""
    update_every: int = Field(default=10, ge=1)
    """Steps between two estimates of the curvature (k in the paper)."""
    eps: float = Field(default=1e-12, gt=0)
    """Smallest divisor of a momentum."""


def build_ademamix(options: AdEMAMixOptions) -> TorchOptimizer:
    """AdEMAMix (Pagliardini et al., 2024, arXiv:2409.03137)."""
    from finetooth_adaptive.by_weight import AdEMAMix

    shared = {"betas": options.betas, "alpha": options.alpha, "slow_warmup": options.slow_warmup, "eps": options.eps}
    return _optimizer(options, AdEMAMix, shared)


def build_adopt(options: AdoptOptions) -> TorchOptimizer:
    """ADOPT (Taniguchi et al., 2024, arXiv:2411.02853)."""
    from finetooth_adaptive.by_weight import Adopt

    return _optimizer(options, Adopt, {"betas": options.betas, "eps": options.eps})


def build_came(options: CameOptions) -> TorchOptimizer:
    """CAME (Luo et al., 2023, arXiv:2307.02047)."""
    from finetooth_adaptive.by_weight import Came

    def keeps(facts: ModelFacts) -> float:
        matrices = [*layer_matrices(facts), *[(facts.hidden_size, facts.vocab_size)] * (1 if facts.tied else 2)]
        return 4 + 8 * sum(a + b for a, b in matrices) / sum(a * b for a, b in matrices)

    made = _optimizer(options, Came, {"betas": options.betas, "clip": options.clip, "eps": options.eps})
    return TorchOptimizer(options=options, learning_rate=options.learning_rate, make=made.make, keeps=keeps)


def build_prodigy(options: ProdigyOptions) -> TorchOptimizer:
    """Prodigy (Mishchenko & Defazio, 2023, arXiv:2306.06101)."""
    from finetooth_adaptive.prodigy import Prodigy

    shared = {"betas": options.betas, "eps": options.eps, "first": options.first, "growth": options.growth}
    return _optimizer(options, Prodigy, shared, obstacle="prodigy finds one rate from all gradients together")


def build_sophia(options: SophiaOptions) -> TorchOptimizer:
    """Sophia (Liu et al., 2023, arXiv:2305.14342), its curvature from the squares of the step's own gradients."""
    from finetooth_adaptive.by_weight import Sophia

    shared = {
        "betas": options.betas, "gamma": options.gamma, "targets": options.targets,
        "update_every": options.update_every, "eps": options.eps,
    }  # fmt: skip
    return _optimizer(options, Sophia, shared)


def _optimizer(options: Any, kind: Any, shared: dict[str, Any], obstacle: str = "") -> TorchOptimizer:
    def make(groups: Groups) -> torch.optim.Optimizer:
        made: torch.optim.Optimizer = kind(groups, {"lr": options.learning_rate, **shared})
        return made

    return TorchOptimizer(options=options, learning_rate=options.learning_rate, make=make, obstacle=obstacle)
