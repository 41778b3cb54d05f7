"""BAdam (Luo et al., 2024, BAdam: A Memory Efficient Full Parameter Optimization Method for Large Language Models,
arXiv:2404.02827, algorithm 1)."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from finetooth_torchshared.by_parameter import ByParameter, Settings, counted, decay
from torch import Tensor

LAYER = re.compile(r"\.(\d+)\.")


class BAdam(ByParameter):
    """Adam with bias-corrected moments, over one block of parameters at a time. After `switch_every` steps the next
    block trains, and the moments of the last one are dropped.

    A block is the parameters of one `kind` of groups. The groups hold the number of steps, so that it is saved with
    them.
    """

    def __init__(self, params: Any, settings: Settings) -> None:
        super().__init__(params, settings)
        for group in self.param_groups:
            group.setdefault("done", 0)

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update of the present block; calls `closure` first and returns its result."""
        turn = {id(weight) for weight in active(self)}
        idle = [(w, w.grad) for group in self.param_groups for w in group["params"] if id(w) not in turn]
        for weight, _ in idle:
            weight.grad = None
            self.state.pop(weight, None)
        try:
            return super().step(closure)
        finally:
            for weight, gradient in idle:
                weight.grad = gradient
            for group in self.param_groups:
                group["done"] += 1

    def update(self, weight: Tensor, gradient: Tensor, state: Settings, group: Settings, place: int) -> None:
        """See `ByParameter.update`."""
        if not state:
            state["mean"], state["square"] = torch.zeros_like(weight), torch.zeros_like(weight)
        step, (beta1, beta2) = counted(state), group["betas"]
        state["mean"].lerp_(gradient, 1 - beta1)
        state["square"].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        root = state["square"].sqrt().div_(math.sqrt(1 - beta2**step)).add_(group["eps"])
        decay(weight, group)
        weight.addcdiv_(state["mean"], root, value=-group["lr"] / (1 - beta1**step))


def active(optimizer: torch.optim.Optimizer) -> Sequence[Tensor]:
    """The parameters of the block that the next update trains."""
    first = optimizer.param_groups[0]
    kinds = sorted({group["kind"] for group in optimizer.param_groups})
    round_, place = divmod(first["done"] // first["switch_every"], len(kinds))
    kind = _ordered(kinds, first["order"], (first["seed"], round_))[place]
    return [weight for group in optimizer.param_groups if group["kind"] == kind for weight in group["params"]]


def _ordered(kinds: Sequence[str], order: str, seeds: tuple[int, int]) -> Sequence[str]:
    if order == "random":
        return [kinds[i] for i in np.random.default_rng(seeds).permutation(len(kinds))]
    return kinds if order == "ascending" else kinds[::-1]


def block_of(name: str, parameter: Any) -> str:
    """The decoder layer of a parameter, with a number that sorts like the layers; parameters outside of layers belong
    to the embedding, or to the head and the last norm."""
    match = LAYER.search(name)
    if match is not None:
        return f"layer {int(match[1]):05d}"
    return "embedding" if any(word in name for word in ("embed", "wte", "wpe")) else "top"


__all__ = ["BAdam", "active", "block_of"]
