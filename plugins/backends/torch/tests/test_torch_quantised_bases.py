"""A loader that gives weights in fewer bits, and did not say so before."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from finetooth_hooks import PlanError


class Packed(torch.nn.Module):
    """A linear module of a library of packed formats: what trains of it is nothing."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.in_features, self.out_features = inputs, outputs
        self.register_buffer("qweight", torch.zeros(inputs // 8, outputs, dtype=torch.int32))


def test_an_adapter_that_trains_the_base_is_refused(kit: SimpleNamespace) -> None:
    def prepare(model: Any) -> None:
        old = model.model.layers[1].mlp.up_proj
        model.model.layers[1].mlp.up_proj = Packed(old.in_features, old.out_features)

    with pytest.raises(PlanError, match="model: test:tiny gives tiny with weights in fewer bits") as caught:
        kit.engine(adapter=kit.adapter(full=True), prepare=prepare)
    assert caught.value.exit_code == 2 and "pick a low-rank adapter" in str(caught.value)
