"""GaLore (Zhao et al., 2024, GaLore: Memory-Efficient LLM Training by Gradient Low-Rank Projection,
arXiv:2403.03507, algorithm 2)."""

from __future__ import annotations

import torch
from finetooth_torchshared.by_parameter import ByParameter, Settings, counted, decay
from torch import Tensor

from finetooth_lowmemory.moments import adam_direction, adam_direction_8bit
from finetooth_lowmemory.optimizers import PROJECTED


class Galore(ByParameter):
    """With gradient G (m, n) and the first r singular vectors P of a gradient, on the shorter side:

        R <- P^T G (m <= n) or G P (else);  N <- Adam's direction for R
        W <- (1 - lr * wd) W - lr * scale * P N or N P^T

    Adam updates other parameters than matrices inside a layer, and matrices no larger than the rank. The moments stay
    when the subspace changes, as in the paper. With `bits` 8 all moments are in 8 bits between updates, as in its
    section 5.
    """

    def update(self, weight: Tensor, gradient: Tensor, state: Settings, group: Settings, place: int) -> None:
        """See `ByParameter.update`."""
        step = counted(state)
        decay(weight, group)
        rank = group["rank"]
        directed = adam_direction_8bit if group["bits"] == 8 else adam_direction
        if group["kind"] != PROJECTED or min(weight.shape) <= rank:
            weight.add_(directed(gradient, state, group), alpha=-group["lr"])
            return
        left = weight.shape[0] <= weight.shape[1]
        if (step - 1) % group["update_every"] == 0:
            state["subspace"] = subspace_of(gradient if left else gradient.T, rank)
        subspace = state["subspace"]
        direction = directed(subspace.T @ gradient if left else gradient @ subspace, state, group)
        update = subspace @ direction if left else direction @ subspace.T
        weight.add_(update, alpha=-group["lr"] * group["scale"])


def subspace_of(gradient: Tensor, rank: int) -> Tensor:
    """The first left singular vectors of (m, n) as (m, rank). Their signs are arbitrary, and the moments outlive them,
    so the largest entry of each is made positive: every library then finds the same."""
    vectors = torch.linalg.svd(gradient, full_matrices=False)[0][:, :rank]
    largest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
    return torch.where(largest < 0, -vectors, vectors).contiguous()
