"""One of two ranks whose AdamW DeepSpeed shards, held against AdamW over whole parameters. A script: it takes the
rank, a port, and options."""

from __future__ import annotations

import math
import sys
from copy import deepcopy
from typing import Any

import pytest
import torch
from finetooth_ddp.options import DdpOptions
from finetooth_ddp.strategy import Ddp
from finetooth_deepspeed.options import DeepspeedOptions
from finetooth_deepspeed.strategy import Deepspeed
from finetooth_deepspeed.zero import ZeroOptimizer
from finetooth_hooks import EngineError, OptimizerBase, UserError
from finetooth_hooks.protocols import Rank

LIMIT = 2.0
SHAPES = {"a.weight": (7, 5), "a.bias": (5,), "b.weight": (3, 11)}


class AdamW(OptimizerBase):
    """With a group that decays and one that does not."""

    learning_rate = 0.05
    capabilities: frozenset[str] = frozenset()

    def create(self, named_parameters: Any) -> torch.optim.Optimizer:
        groups = [
            {"params": [parameter for _, parameter in named_parameters if (parameter.ndim > 1) is decays],
             "weight_decay": 0.1 * decays}
            for decays in (True, False)
        ]  # fmt: skip
        return torch.optim.AdamW([group for group in groups if group["params"]], lr=self.learning_rate)


def parameters() -> list[tuple[str, torch.nn.Parameter]]:
    generator = torch.Generator().manual_seed(0)
    return [(name, torch.nn.Parameter(torch.randn(shape, generator=generator))) for name, shape in SHAPES.items()]


def gradients(step: int, rank: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(10 * step + rank)
    return [torch.randn(shape, generator=generator) for shape in SHAPES.values()]


def whole_step(optimizer: torch.optim.Optimizer, own: list[torch.nn.Parameter], step: int) -> float:
    """A step of one process, over the gradients of both ranks."""
    for parameter, *of_ranks in zip(own, gradients(step, 0), gradients(step, 1), strict=True):
        parameter.grad = of_ranks[0] + of_ranks[1]
    norm = float(torch.nn.utils.clip_grad_norm_(own, LIMIT))
    optimizer.step()
    return norm


def shared_step(optimizer: ZeroOptimizer, own: list[torch.nn.Parameter], step: int, rank: int) -> float:
    for parameter, gradient in zip(own, gradients(step, rank), strict=True):
        parameter.grad = gradient
    optimizer.share()
    norm = optimizer.norm()
    optimizer.clip(LIMIT, norm)
    optimizer.step()
    return norm


def main(rank: int, port: int, options: str) -> None:
    words = options.split(",")
    asked = DeepspeedOptions(stage=int(words[0].removeprefix("stage=")), offload="offload" in words)  # type: ignore[arg-type]
    strategy = Deepspeed(asked, Ddp(DdpOptions()))
    strategy.open(Rank(rank, 2, rank, "127.0.0.1", port), "cpu")
    named, reference = parameters(), [parameter for _, parameter in parameters()]
    own = [parameter for _, parameter in named]
    ours = strategy.shard_optimizer(named, AdamW().create(named), AdamW())
    theirs = AdamW().create([(name, parameter) for name, parameter in zip(SHAPES, reference, strict=True)])

    def alike() -> None:
        for a, b in zip(own, reference, strict=True):
            torch.testing.assert_close(a.detach(), b.detach(), rtol=1e-5, atol=1e-6)

    for step in range(3):
        for group in (*ours.param_groups, *theirs.param_groups):
            group["lr"] = 0.05 / (1 + step)
        assert shared_step(ours, own, step, rank) == pytest.approx(whole_step(theirs, reference, step), rel=1e-6)
        alike()

    # half of AdamW's state and of a copy of the weights, 12 bytes for each number, as the plan says
    rows = [(part, ours._base.state[part]) for part, _ in ours._groups()]
    kept = sum(part.nbytes + state["exp_avg"].nbytes + state["exp_avg_sq"].nbytes for part, state in rows)
    padding = 12 * 4 * len(rows)
    assert 0 <= kept - 12 * sum(parameter.numel() for parameter in own) / 2 <= padding

    # its state is that of one process, and one process's state is taken
    mine, whole = ours.state_dict(), theirs.state_dict()
    assert mine["param_groups"] == whole["param_groups"] and mine["state"].keys() == whole["state"].keys()
    for index, state in whole["state"].items():
        for key, value in state.items():
            torch.testing.assert_close(mine["state"][index][key], value, rtol=1e-5, atol=1e-6)
    shared_step(ours, own, 7, rank)
    for a, b in zip(own, reference, strict=True):
        a.data.copy_(b.data)
    ours.load_state_dict(deepcopy(whole))
    shared_step(ours, own, 3, rank)
    whole_step(theirs, reference, 3)
    alike()

    # a gradient that is not finite at one rank: nothing of it stays
    for parameter in own:
        parameter.grad = torch.full_like(parameter, math.nan if rank else 1.0)
    ours.share()
    assert ours.norm() == math.inf
    alike()
    shared_step(ours, own, 4, rank)
    whole_step(theirs, reference, 4)
    alike()

    # a step without rows moves nothing
    for parameter in own:
        parameter.grad = None
    ours.share()
    assert ours.norm() == 0.0
    ours.step()
    alike()

    # a rank without rows, and a parameter that nobody has a gradient of
    for parameter, gradient in zip(own, gradients(5, 0), strict=True):
        parameter.grad = None if rank else gradient.clone()
    ours.share()
    assert ours.norm() == pytest.approx(float(torch.cat([g.flatten() for g in gradients(5, 0)]).norm()), rel=1e-6)
    ours.step()
    own[0].grad, own[1].grad, own[2].grad = torch.ones(7, 5), None, torch.ones(3, 11)
    with pytest.raises(EngineError, match=r"a\.bias has no gradient in this step"):
        ours.share()
    uneven = deepcopy(whole)
    uneven["state"][1]["step"] += 1
    with pytest.raises(UserError, match="a different 'step' for some parameters"):
        ours.load_state_dict(uneven)
    strategy.close()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
