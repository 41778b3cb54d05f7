"""APOLLO (Zhu et al., 2024, APOLLO: SGD-like Memory, AdamW-level Performance, arXiv:2412.05270, algorithm 1)."""

from __future__ import annotations

import math

import torch
from finetooth_torchshared.by_parameter import ByParameter, Settings, counted, decay
from torch import Tensor

from finetooth_lowmemory.moments import adam_direction
from finetooth_lowmemory.optimizers import PROJECTED

GROWTH = 1.01
"""Largest ratio of a scaled gradient's norm to that of the previous step (gamma in the paper)."""


class Apollo(ByParameter):
    """With gradient G, transposed so that its shorter side comes first (m <= n), and a random P (r, m) with entries of
    variance 1 / r:

        R <- P G;  N <- Adam's direction for R
        s <- |N_j| / |R_j| for each column j (`channel`), or |N| / |R| (`tensor`)
        U <- scale * G s, no longer than 1.01 times the U of the step before
        W <- (1 - lr * wd) W - lr * U

    P follows from the seed, the parameter's index and the step, so that it need not be stored. Adam updates other
    parameters than matrices inside a layer, and matrices no larger than the rank.
    """

    def update(self, weight: Tensor, gradient: Tensor, state: Settings, group: Settings, place: int) -> None:
        """See `ByParameter.update`."""
        step = counted(state)
        decay(weight, group)
        rank = group["rank"]
        if group["kind"] != PROJECTED or min(weight.shape) <= rank:
            weight.add_(adam_direction(gradient, state, group), alpha=-group["lr"])
            return
        turned = gradient if weight.shape[0] <= weight.shape[1] else gradient.T
        round_ = (step - 1) // group["update_every"]
        low = projection(rank, turned.shape[0], (group["seed"], place, round_)).to(gradient) @ turned
        direction = adam_direction(low, state, group)
        over: int | None = 0 if group["by"] == "channel" else None
        least = torch.finfo(low.dtype).tiny
        sizes = torch.linalg.vector_norm(direction, dim=over), torch.linalg.vector_norm(low, dim=over)
        update = turned * (sizes[0] / sizes[1].clamp_min(least) * group["scale"])
        length = torch.linalg.vector_norm(update)
        if "length" in state:
            most = state["length"] * GROWTH
            update.mul_(torch.where((length > most) & (most > 0), most / length.clamp_min(least), 1.0))
            length = torch.where(most > 0, torch.minimum(length, most), length)
        state["length"] = length
        weight.add_(update if turned is gradient else update.T, alpha=-group["lr"])


def projection(rank: int, size: int, seeds: tuple[int, int, int]) -> Tensor:
    """(rank, size) normal entries of variance 1 / rank, the same for the same seeds on every device."""
    seed, place, round_ = seeds
    draw = torch.Generator().manual_seed((seed * 1_000_003 + place) * 1_000_003 + round_)
    return torch.randn(rank, size, generator=draw, dtype=torch.float32).div_(math.sqrt(rank))
