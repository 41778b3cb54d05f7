"""What an optimizer does to a matrix and to its half."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from finetooth_core.api import build_entry
from finetooth_hooks import OptimizerBase
from finetooth_torchshared.elementwise import obstacle_to_layers, obstacle_to_parts


class Made(OptimizerBase):
    learning_rate = 0.1

    def __init__(self, kind: Any) -> None:
        self._kind = kind

    def create(self, named_parameters: Any) -> Any:
        return self._kind([parameter for _, parameter in named_parameters], lr=0.1)


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.SGD, torch.optim.RMSprop])
def test_those_that_update_number_by_number(kind: Any) -> None:
    assert not obstacle_to_parts(Made(kind))


@pytest.mark.parametrize("kind", [torch.optim.Muon, torch.optim.Adafactor])
def test_those_that_need_the_whole_matrix(kind: Any) -> None:
    """Muon orthogonalises it; Adafactor keeps means of its rows and columns, and scales by the norm of all of it."""
    assert obstacle_to_parts(Made(kind))


@pytest.mark.parametrize("rate", [1e-6, 1e-4, 2e-4, 1e-3, 0.1])
def test_rounding_of_another_kernel_is_no_dependence(rate: float) -> None:
    """Torch has a fused AdamW for a CPU and none for weights on the device `meta`: the two round apart."""
    optimizer = build_entry(
        "optimizer", {"name": "finetooth-standard:adamw", "learning_rate": rate}, "optimizer", "torch"
    )[0]
    assert not obstacle_to_layers(optimizer)
    assert not obstacle_to_parts(optimizer)
