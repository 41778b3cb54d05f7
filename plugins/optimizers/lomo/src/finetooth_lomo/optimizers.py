"""LOMO, AdaLomo and BAdam: options and sizes of states. torch is imported when one is built."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from finetooth_hooks.protocols import ModelFacts
from finetooth_toolbox.llama_shape import layer_matrices
from finetooth_torchshared.optimizers import Beta, Groups, OptimizerOptions, TorchOptimizer
from pydantic import Field

if TYPE_CHECKING:
    import torch

IN_BACKWARD = frozenset({"in_backward"})


class LomoOptions(OptimizerOptions):
    """Options of `lomo`."""

    learning_rate: float = Field(default=1e-2, gt=0)
    """Peak learning rate."""
    clip: float = Field(default=1.0, ge=0)
    """Entries of gradients are clipped to this size; 0 is off. The global norm is unknown during the backward pass, so
    `train.max_grad_norm` must be 0."""


class AdaLomoOptions(OptimizerOptions):
    """Options of `adalomo`."""

    learning_rate: float = Field(default=5e-4, gt=0)
    """Peak learning rate, relative: a tensor moves by this times the root mean square of its weights, or times 0.001 if
    that is smaller."""
    beta2_decay: float = Field(default=-0.8, lt=0)
    """The decay rate of the second moment at step t is 1 - t ** beta2_decay."""
    clip: float = Field(default=1.0, gt=0)
    """Updates with a larger root mean square are scaled down to it."""


class BAdamOptions(OptimizerOptions):
    """Options of `badam`."""

    learning_rate: float = Field(default=2e-5, gt=0)
    """Peak learning rate."""
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    """Decay rates of the first and second moment."""
    eps: float = Field(default=1e-8, gt=0)
    """Added to the root of the second moment."""
    switch_every: int = Field(default=50, ge=1)
    """Steps after which the next block trains (K in the paper); its moments start at zero."""
    order: Literal["ascending", "descending", "random"] = "random"
    """Order of the blocks; `random` draws a new one for each round."""
    seed: int = Field(default=0, ge=0)
    """Seed of random orders."""


def build_lomo(options: LomoOptions) -> TorchOptimizer:
    """LOMO (Lv et al., 2023, arXiv:2306.09782)."""
    from finetooth_lomo.lomo import Lomo

    def make(groups: Groups) -> torch.optim.Optimizer:
        return Lomo(groups, {"lr": options.learning_rate, "clip": options.clip})

    return TorchOptimizer(options=options, learning_rate=options.learning_rate, make=make, words=IN_BACKWARD)


def build_adalomo(options: AdaLomoOptions) -> TorchOptimizer:
    """AdaLomo (Lv et al., 2023, arXiv:2310.10195)."""
    from finetooth_lomo.lomo import AdaLomo

    def keeps(facts: ModelFacts) -> float:
        matrices = [*layer_matrices(facts), *[(facts.hidden_size, facts.vocab_size)] * (1 if facts.tied else 2)]
        return 4 * sum(a + b for a, b in matrices) / sum(a * b for a, b in matrices)

    def make(groups: Groups) -> torch.optim.Optimizer:
        shared = {"lr": options.learning_rate, "beta2_decay": options.beta2_decay, "clip": options.clip}
        return AdaLomo(groups, shared)

    return TorchOptimizer(
        options=options, learning_rate=options.learning_rate, make=make, keeps=keeps, words=IN_BACKWARD
    )


def build_badam(options: BAdamOptions) -> TorchOptimizer:
    """BAdam (Luo et al., 2024, arXiv:2404.02827) over decoder layers; other parameters are separate blocks."""
    from finetooth_lomo.badam import BAdam, active, block_of

    def keeps(facts: ModelFacts) -> float:
        layer = sum(a * b for a, b in layer_matrices(facts)) / facts.layers
        embedding = facts.vocab_size * facts.hidden_size
        whole = facts.layers * layer + embedding * (1 if facts.tied else 2)
        return 8 * max(layer, embedding) / whole

    def make(groups: Groups) -> torch.optim.Optimizer:
        shared = {
            "lr": options.learning_rate, "betas": options.betas, "eps": options.eps,
            "switch_every": options.switch_every, "order": options.order, "seed": options.seed,
        }  # fmt: skip
        return BAdam(groups, shared)

    return TorchOptimizer(
        options=options,
        learning_rate=options.learning_rate,
        make=make,
        apart=block_of,
        keeps=keeps,
        turn=active,
        obstacle="badam counts the steps of all parameters together",
    )
