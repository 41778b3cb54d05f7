"""Muon and Dion with AdamW: options and sizes of states. torch is imported when one is built."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from finetooth_hooks import Context
from finetooth_hooks.protocols import ModelFacts
from finetooth_toolbox.llama_shape import layer_matrices
from finetooth_torchshared.optimizers import Beta, Groups, OptimizerOptions, TorchOptimizer, adamw, is_hidden_matrix
from pydantic import Field

if TYPE_CHECKING:
    import torch

MATRIX, OTHER = "matrix", "other"


class MatrixOptions(OptimizerOptions):
    """Options of AdamW for parameters other than matrices inside a layer: embeddings, head, norms and biases."""

    betas: tuple[Beta, Beta] = (0.9, 0.95)
    """Decay rates of AdamW, which updates all parameters other than matrices inside layers."""
    eps: float = Field(default=1e-8, gt=0)
    """AdamW's eps, added to the root of its second moment."""


class MuonOptions(MatrixOptions):
    """Options of `muon`."""

    learning_rate: float = Field(default=2e-4, gt=0)
    """Peak learning rate; with `scale: adamw` take one that suits AdamW."""
    momentum: Beta = 0.95
    """Decay rate of the momentum of a matrix."""
    nesterov: bool = True
    """Use Nesterov momentum."""
    iterations: int = Field(default=5, ge=1, le=20)
    """Newton-Schulz iterations that make an update nearly orthonormal."""
    scale: Literal["adamw", "spectral"] = "adamw"
    """Size of a step along an (outputs, inputs) matrix. `adamw`: 0.2 * sqrt(max(outputs, inputs)) times the learning
    rate, the usual size of AdamW's steps. `spectral`: sqrt(max(1, outputs / inputs)) times the learning rate; 0.02 is a
    usual rate for matrices (AdamW's part takes the same rate)."""


class DionOptions(MatrixOptions):
    """Options of `dion`."""

    learning_rate: float = Field(default=2e-4, gt=0)
    """Peak learning rate, also of AdamW's part."""
    momentum: Beta = 0.95
    """Share that the momentum keeps of what an update took along its directions."""
    rank_ratio: float = Field(default=0.25, gt=0, le=1)
    """Rank of an update, as a share of the smaller side of its matrix."""
    seed: int = Field(default=0, ge=0)
    """Seed of the first directions."""


def kind_of(name: str, parameter: torch.Tensor) -> str:
    """The kind of update of a parameter: matrix or AdamW."""
    return MATRIX if is_hidden_matrix(name, parameter) else OTHER


def weights(facts: ModelFacts) -> tuple[int, int]:
    """Number of weights of a whole model in matrices inside layers, and in embedding and head."""
    inside = sum(inputs * outputs for inputs, outputs in layer_matrices(facts))
    return inside, facts.vocab_size * facts.hidden_size * (1 if facts.tied else 2)


def rank_of(outputs: int, inputs: int, ratio: float) -> int:
    """Rank of the update of an (outputs, inputs) matrix."""
    return max(1, round(ratio * min(outputs, inputs)))


def _muon_keeps(facts: ModelFacts) -> float:
    inside, other = weights(facts)
    return (4 * inside + 8 * other) / max(1, inside + other)


def build_muon(options: MuonOptions, context: Context) -> TorchOptimizer:
    """torch.optim.Muon (Jordan et al., 2024; the step sizes of Liu et al., 2025, arXiv:2502.16982) over the matrices
    inside layers, AdamW over everything else."""
    del context
    import torch

    from finetooth_muon.chained import Chained

    rate = options.learning_rate

    def make(groups: Groups) -> torch.optim.Optimizer:
        matrices = [group for group in groups if group["kind"] == MATRIX]
        others = [group for group in groups if group["kind"] == OTHER]
        parts: list[torch.optim.Optimizer] = []
        if matrices:
            parts.append(
                torch.optim.Muon(
                    matrices,
                    lr=rate,
                    momentum=options.momentum,
                    nesterov=options.nesterov,
                    ns_steps=options.iterations,
                    adjust_lr_fn="match_rms_adamw" if options.scale == "adamw" else "original",
                )
            )
        if others:
            parts.append(adamw(others, learning_rate=rate, betas=options.betas, eps=options.eps))
        return Chained(parts)

    return TorchOptimizer(
        options=options, learning_rate=options.learning_rate, make=make, apart=kind_of, keeps=_muon_keeps
    )


def build_dion(options: DionOptions, context: Context) -> TorchOptimizer:
    """Dion (Ahn et al., 2025, arXiv:2504.05295) over the matrices inside layers, AdamW over everything else."""
    del context
    from finetooth_muon.chained import Chained
    from finetooth_muon.dion import Dion

    rate = options.learning_rate

    def keeps(facts: ModelFacts) -> float:
        inside, other = weights(facts)
        directions = sum(
            4 * inputs * rank_of(outputs, inputs, options.rank_ratio) for inputs, outputs in layer_matrices(facts)
        )
        return (4 * inside + directions + 8 * other) / max(1, inside + other)

    def make(groups: Groups) -> torch.optim.Optimizer:
        matrices = [group for group in groups if group["kind"] == MATRIX]
        others = [group for group in groups if group["kind"] != MATRIX]
        parts: list[torch.optim.Optimizer] = []
        if matrices:
            parts.append(Dion(matrices, rate, options.momentum, options.rank_ratio, options.seed))
        if others:
            parts.append(adamw(others, learning_rate=rate, betas=options.betas, eps=options.eps))
        return Chained(parts)

    return TorchOptimizer(options=options, learning_rate=options.learning_rate, make=make, apart=kind_of, keeps=keeps)
