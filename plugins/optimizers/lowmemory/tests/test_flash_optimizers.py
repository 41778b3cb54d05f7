"""FlashOptim's optimizers against flashoptim 0.1.4 itself.

`flash_optimizers.safetensors`: `start`, six `gradients`, and what FlashAdamW, FlashAdam, FlashSGD, FlashSGDW and
FlashLion made of them step by step in fp32, their kernels run on a processor by Triton's interpreter; and the codes and
scales that they kept at the end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from finetooth_lowmemory import flash_optimizers as built
from safetensors.torch import load_file

SEEN = load_file(Path(__file__).parent / "flash_optimizers.safetensors")
GIVEN: dict[str, dict[str, Any]] = {
    "flash_adamw": {"learning_rate": 1e-2},
    "flash_adam": {"learning_rate": 1e-2},
    "flash_sgd": {"learning_rate": 1e-2, "momentum": 0.9},
    "flash_sgdw": {"learning_rate": 1e-2, "momentum": 0.9, "nesterov": True},
    "flash_lion": {"learning_rate": 1e-3},
}


@pytest.mark.parametrize("name", GIVEN)
def test_steps_are_flashoptims(name: str) -> None:
    kind = "".join(part.capitalize() for part in name.split("_"))
    options = getattr(built, f"{kind}Options")(weight_decay=0.1, **GIVEN[name])
    weight = torch.nn.Parameter(SEEN["start"].clone())
    optimizer = getattr(built, f"build_{name}")(options, None).create([("proj.weight", weight)])
    for gradient, expected in zip(SEEN["gradients"], SEEN[name], strict=True):
        weight.grad = gradient
        optimizer.step()
        torch.testing.assert_close(weight.detach(), expected, rtol=1e-5, atol=1e-6)
    state = optimizer.state[weight]
    kept = {"mean": SEEN[f"{name}.mean"].int() + 127}
    if "adam" in name:
        kept["root"] = SEEN[f"{name}.root"].int()
    for part, codes in kept.items():
        assert state[part].dtype == torch.uint8 and state[f"{part}_scale"].dtype == torch.float16
        assert torch.equal(state[part][: weight.numel()].int(), codes.flatten())
        torch.testing.assert_close(state[f"{part}_scale"].float(), SEEN[f"{name}.{part}.scales"], rtol=1e-3, atol=0)


def test_sgd_without_momentum_keeps_nothing() -> None:
    """By torch's own."""
    weight = torch.nn.Parameter(SEEN["start"].clone())
    other = torch.nn.Parameter(SEEN["start"].clone())
    options = built.FlashSgdOptions(learning_rate=0.1, weight_decay=0.3)
    own = built.build_flash_sgd(options, None).create([("w", weight)])  # type: ignore[arg-type]
    theirs = torch.optim.SGD([other], lr=0.1, weight_decay=0.3)
    for gradient in SEEN["gradients"]:
        weight.grad, other.grad = gradient, gradient
        own.step()
        theirs.step()
    torch.testing.assert_close(weight, other, rtol=1e-6, atol=1e-7)
    assert not [value for value in own.state[weight].values() if isinstance(value, torch.Tensor)]
