"""LOMO (Lv et al., 2023, Full Parameter Fine-tuning for Large Language Models with Limited Resources,
arXiv:2306.09782) and AdaLomo (Lv et al., 2023, AdaLomo: Low-memory Optimization with Adaptive Learning Rate,
arXiv:2310.10195, algorithm 1)."""

from __future__ import annotations

import torch
from finetooth_torchshared.by_parameter import ByParameter, Settings, counted, decay
from torch import Tensor

SMALLEST_ROOT = 1e-3
SMALLEST_SQUARE = 1e-30


class Lomo(ByParameter):
    """W <- (1 - lr * wd) W - lr * g, entries of g clipped at `clip`."""

    def update(self, weight: Tensor, gradient: Tensor, state: Settings, group: Settings, place: int) -> None:
        """See `ByParameter.update`."""
        if group["clip"]:
            gradient = gradient.clamp(-group["clip"], group["clip"])
        decay(weight, group)
        weight.add_(gradient, alpha=-group["lr"])


class AdaLomo(ByParameter):
    """With gradient g of a matrix, the means of g^2 over rows r and over columns c, b = 1 - t ** beta2_decay:

        r <- b r + (1 - b) row means of g^2;  c <- b c + (1 - b) column means of g^2
        u <- g / sqrt(r c / mean(r))
        W <- (1 - lr * wd) W - lr * max(0.001, RMS(W)) * u / max(1, RMS(u) / clip)

    A tensor of one dimension keeps the whole second moment. This is the paper's grouped update normalisation, which
    needs no norm of all gradients.
    """

    def update(self, weight: Tensor, gradient: Tensor, state: Settings, group: Settings, place: int) -> None:
        """See `ByParameter.update`."""
        step = counted(state)
        keep = 1 - step ** group["beta2_decay"]
        squares = gradient.square().add_(SMALLEST_SQUARE)
        if weight.ndim >= 2:
            rows, columns = squares.mean(-1, keepdim=True), squares.mean(-2, keepdim=True)
            rows = state["rows"] = state["rows"].lerp_(rows, 1 - keep) if "rows" in state else rows
            columns = state["columns"] = state["columns"].lerp_(columns, 1 - keep) if "columns" in state else columns
            squares = torch.mul(rows / rows.mean(-2, keepdim=True), columns, out=squares)
        else:
            squares = state["squares"] = state["squares"].lerp_(squares, 1 - keep) if "squares" in state else squares
        update = gradient / squares.sqrt()
        update.div_(root_mean_square(update).div_(group["clip"]).clamp_min_(1.0))
        size = root_mean_square(weight).clamp_min_(SMALLEST_ROOT)
        decay(weight, group)
        weight.sub_(update.mul_(size), alpha=group["lr"])


def root_mean_square(tensor: Tensor) -> Tensor:
    """The root mean square as a tensor, so that no device waits for it."""
    return tensor.square().mean().sqrt_()


__all__ = ["AdaLomo", "Lomo", "root_mean_square"]
