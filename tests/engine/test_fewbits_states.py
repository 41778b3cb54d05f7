"""States that an optimizer hands out otherwise than it keeps them: bitsandbytes' in 8 bits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from finetooth_hooks import UserError
from finetooth_torch.state.optimizer import check_optimizer, group_options, take_optimizer

fewbits: Any = pytest.importorskip("finetooth_fewbits.optimizers")


def made(kind: str, *, seed: int = 0) -> tuple[Any, torch.optim.Optimizer, list[tuple[str, torch.nn.Parameter]]]:
    """A parameter large enough for 8 bits, and one that bitsandbytes keeps in fp32."""
    generator = torch.Generator().manual_seed(seed)
    named = [
        (name, torch.nn.Parameter(torch.randn(shape, generator=generator)))
        for name, shape in (("layers.0.proj.weight", (64, 96)), ("layers.0.norm.weight", (64,)))
    ]
    options = fewbits.Lion8bitOptions() if kind == "lion_8bit" else fewbits.AdamW8bitOptions()
    factory = getattr(fewbits, f"build_{kind}")(options)
    return factory, factory.create(named), named


def follow(optimizer: torch.optim.Optimizer, named: Any, steps: range) -> None:
    for step in steps:
        generator = torch.Generator().manual_seed(100 + step)
        for _, parameter in named:
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()


@pytest.mark.parametrize("kind", ["adamw_8bit", "lion_8bit", "paged_adamw", "paged_adamw_8bit"])
def test_what_was_saved_is_taken_and_goes_on_bit_for_bit(kind: str) -> None:
    _, whole, weights = made(kind)
    follow(whole, weights, range(6))
    _, first, named = made(kind)
    follow(first, named, range(3))
    factory, second, taken = made(kind, seed=1)
    for (_, to), (_, was) in zip(taken, named, strict=True):
        to.data.copy_(was.data)
    saved = first.state_dict()
    check_optimizer("a checkpoint", saved, second, factory, taken)
    take_optimizer(second, saved, group_options(first), group_options(second))
    follow(second, taken, range(3, 6))
    for (name, found), (_, wanted) in zip(taken, weights, strict=True):
        assert torch.equal(found, wanted), name


def test_a_state_that_lacks_its_scales_is_refused() -> None:
    factory, optimizer, named = made("adamw_8bit")
    follow(optimizer, named, range(2))
    saved = optimizer.state_dict()
    lost = next(key for key in saved["state"][0] if key not in ("step", "state1", "state2"))
    del saved["state"][0][lost]
    with pytest.raises(
        UserError, match=r"a checkpoint: the optimizer's state has no .* in the state of layers\.0\.proj"
    ):
        check_optimizer("a checkpoint", saved, optimizer, factory, named)
