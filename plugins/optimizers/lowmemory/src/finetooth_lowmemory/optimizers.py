"""Optimizers with smaller states: options and sizes of states. torch is imported when one is built."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from finetooth_hooks import Context
from finetooth_hooks.protocols import ModelFacts
from finetooth_toolbox.llama_shape import layer_matrices
from finetooth_torchshared.optimizers import (
    Beta,
    Groups,
    MomentsOptions,
    OptimizerOptions,
    TorchOptimizer,
    is_hidden_matrix,
)
from pydantic import Field

if TYPE_CHECKING:
    import torch
    from torch import Tensor

PROJECTED, WHOLE = "projected", "whole"
HEADS, OUTPUTS = "heads", "outputs"
"""Kinds of parameter groups: projected ones of low-rank optimizers, and the blocks of Adam-mini."""


class GaloreOptions(OptimizerOptions):
    """Options of `galore`."""

    learning_rate: float = Field(default=2e-5, gt=0)
    """Peak learning rate. Only full fine-tuning profits: matrices of a low-rank adapter do not exceed `rank`."""
    rank: int = Field(default=128, ge=1)
    """Rank of the subspace that holds the moments of a matrix inside a layer."""
    update_every: int = Field(default=200, ge=1)
    """Steps after which the subspace is computed anew, by a singular value decomposition of the gradient."""
    scale: float = Field(default=0.25, gt=0)
    """Factor of an update from the subspace (alpha in the paper)."""
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    """Decay rates of the first and second moment."""
    eps: float = Field(default=1e-8, gt=0)
    """Added to the root of the second moment."""


class Galore8bitOptions(GaloreOptions):
    """Options of `galore_8bit`."""


class ApolloMiniOptions(OptimizerOptions):
    """Options of `apollo_mini`."""

    learning_rate: float = Field(default=2e-5, gt=0)
    """Peak learning rate. Only full fine-tuning profits: matrices of a low-rank adapter are small."""
    update_every: int = Field(default=200, ge=1)
    """Steps after which a new random projection is drawn."""
    scale: float = Field(default=11.3137, gt=0)
    """Factor of the update that makes up for the low rank: the root of the paper's alpha, which is 128."""
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    """Decay rates of the first and second moment."""
    eps: float = Field(default=1e-8, gt=0)
    """Added to the root of the second moment."""
    seed: int = Field(default=0, ge=0)
    """Seed of the random projections."""


class ApolloOptions(ApolloMiniOptions):
    """Options of `apollo`."""

    rank: int = Field(default=256, ge=1)
    """Rank of the random projection."""
    scale: float = Field(default=1.0, gt=0)
    """Factor of the update that makes up for the low rank: the root of the paper's alpha."""


class AdamMiniOptions(MomentsOptions):
    """Options of `adam_mini`."""


class AdamW4bitOptions(MomentsOptions):
    """Options of `adamw_4bit`."""


def mean_bytes(facts: ModelFacts, of_matrix: Callable[[int, int], float]) -> float:
    """Bytes of state per weight of a whole model.

    Args:
        of_matrix: bytes of state of one (outputs, inputs) matrix; for embeddings and the head too.
    """
    inside = [(outputs, inputs) for inputs, outputs in layer_matrices(facts)]
    matrices = [*inside, *[(facts.vocab_size, facts.hidden_size)] * (1 if facts.tied else 2)]
    return sum(of_matrix(*shape) for shape in matrices) / sum(outputs * inputs for outputs, inputs in matrices)


def projected_or_whole(name: str, parameter: Tensor) -> str:
    """Whether a parameter is projected."""
    return PROJECTED if is_hidden_matrix(name, parameter) else WHOLE


def kind_of(name: str, parameter: Tensor) -> str:
    """Whether blocks are heads, by the name that models give to their query and key projections."""
    parts = name.split(".")
    attends = any(part in ("q_proj", "k_proj") for part in parts)
    # in a low-rank pair only the second matrix has the projection's outputs as rows
    return HEADS if attends and parameter.ndim == 2 and "lora_A" not in parts else OUTPUTS


def build_galore(options: GaloreOptions) -> TorchOptimizer:
    """GaLore (Zhao et al., 2024, arXiv:2403.03507) over the matrices inside layers, Adam over everything else."""
    return _galore(options, bits=32)


def build_galore_8bit(options: Galore8bitOptions) -> TorchOptimizer:
    """GaLore with all moments in 8 bits (section 5 of the paper); the subspaces stay in fp32."""
    return _galore(options, bits=8)


def _galore(options: GaloreOptions, *, bits: int) -> TorchOptimizer:
    def moments(numbers: int) -> float:
        from finetooth_lowmemory.moments import bytes_8bit

        return bytes_8bit(numbers) if bits == 8 else 8.0 * numbers

    def keeps(facts: ModelFacts) -> float:
        def of_matrix(outputs: int, inputs: int) -> float:
            short, long = sorted((outputs, inputs))
            low = facts.vocab_size not in (outputs, inputs) and short > options.rank
            if not low:
                return moments(outputs * inputs)
            return 4.0 * options.rank * short + moments(options.rank * long)

        return mean_bytes(facts, of_matrix)

    def make(groups: Groups) -> torch.optim.Optimizer:
        from finetooth_lowmemory.galore import Galore

        shared = {
            "lr": options.learning_rate, "betas": options.betas, "eps": options.eps, "rank": options.rank,
            "update_every": options.update_every, "scale": options.scale, "bits": bits,
        }  # fmt: skip
        return Galore(groups, shared)

    return TorchOptimizer(
        options=options, learning_rate=options.learning_rate, make=make, apart=projected_or_whole, keeps=keeps
    )


def build_apollo(options: ApolloOptions) -> TorchOptimizer:
    """APOLLO (Zhu et al., 2024, arXiv:2412.05270) with a factor for each channel, over the matrices inside layers; Adam
    over everything else."""
    return _optimizer(options, options.rank, "channel")


def build_apollo_mini(options: ApolloMiniOptions) -> TorchOptimizer:
    """APOLLO of rank 1 with one factor for each matrix inside a layer; Adam over everything else."""
    return _optimizer(options, 1, "tensor")


def _optimizer(options: ApolloMiniOptions, rank: int, by: Literal["channel", "tensor"]) -> TorchOptimizer:
    from finetooth_lowmemory.apollo import Apollo

    def keeps(facts: ModelFacts) -> float:
        def of_matrix(outputs: int, inputs: int) -> float:
            low = facts.vocab_size not in (outputs, inputs) and min(outputs, inputs) > rank
            return 8.0 * rank * max(outputs, inputs) if low else 8.0 * outputs * inputs

        return mean_bytes(facts, of_matrix)

    def make(groups: Groups) -> torch.optim.Optimizer:
        shared = {
            "lr": options.learning_rate, "betas": options.betas, "eps": options.eps, "rank": rank, "by": by,
            "update_every": options.update_every, "scale": options.scale, "seed": options.seed,
        }  # fmt: skip
        return Apollo(groups, shared)

    return TorchOptimizer(
        options=options, learning_rate=options.learning_rate, make=make, apart=projected_or_whole, keeps=keeps
    )


def build_adam_mini(options: AdamMiniOptions, context: Context) -> TorchOptimizer:
    """Adam-mini (Zhang et al., 2024, arXiv:2406.16793) over all trained parameters."""
    from finetooth_lowmemory.adam_mini import AdamMini

    head_dim = context.facts.head_dim

    def keeps(facts: ModelFacts) -> float:
        return mean_bytes(facts, lambda outputs, inputs: 4.0 * outputs * inputs + 4.0 * outputs)

    def make(groups: Groups) -> torch.optim.Optimizer:
        shared = {"lr": options.learning_rate, "betas": options.betas, "eps": options.eps, "head_dim": head_dim}
        return AdamMini(groups, shared)

    return TorchOptimizer(options=options, learning_rate=options.learning_rate, make=make, apart=kind_of, keeps=keeps)


def build_adamw_4bit(options: AdamW4bitOptions) -> TorchOptimizer:
    """AdamW with moments in 4 bits (Li et al., 2023, Memory Efficient Optimizers with 4-bit States, arXiv:2309.01507)
    in plain torch, on every device."""

    def keeps(facts: ModelFacts) -> float:
        from finetooth_lowmemory.adamw_4bit import state_bytes

        return mean_bytes(facts, lambda outputs, inputs: state_bytes(outputs * inputs))

    def make(groups: Groups) -> torch.optim.Optimizer:
        from finetooth_lowmemory.adamw_4bit import AdamW4bit

        return AdamW4bit(groups, {"lr": options.learning_rate, "betas": options.betas, "eps": options.eps})

    return TorchOptimizer(options=options, learning_rate=options.learning_rate, make=make, keeps=keeps)
