"""Stored weights: their numbers are there while a product is made, and at no other time."""

from __future__ import annotations

import weakref

import torch
from finetooth_kernels.low_rank_linear import low_rank_linear
from finetooth_native.stored_weights import is_stored, joined_weight, recomputed
from finetooth_torchshared.quantised import DequantisingLinear
from torch import Tensor, nn


class Halves(DequantisingLinear):
    """Stored as fp16."""

    def __init__(self, module: nn.Linear) -> None:
        super().__init__(module.in_features, module.out_features, module.bias)
        self.register_buffer("codes", module.weight.detach().half())

    def dequantised(self, dtype: torch.dtype) -> Tensor:
        codes: Tensor = self.codes
        return codes.to(dtype)


def layers() -> list[nn.Module]:
    torch.manual_seed(0)
    return [Halves(nn.Linear(6, 4)), nn.Linear(6, 3), Halves(nn.Linear(6, 5))]


def test_stored_and_plain_weights_stand_below_each_other() -> None:
    group = layers()
    weight = joined_weight(group, torch.float64)
    assert weight.dtype == torch.float64 and weight.shape == (12, 6) and not weight.requires_grad
    x = torch.randn(7, 6)
    own = torch.cat([layer(x) - layer.bias for layer in group], -1)
    torch.testing.assert_close(x @ weight.float().t(), own)
    assert torch.equal(weight[4:7], group[1].weight.double())
    group[0].register_forward_hook(lambda *_: None)  # somebody wants to know of its calls
    assert [is_stored(layer) for layer in group] == [False, False, True]


def test_backward_makes_the_weight_again_and_has_the_same_slopes() -> None:
    group, x = layers(), torch.randn(7, 6, requires_grad=True)
    a, b = torch.randn(2, 6, requires_grad=True), torch.randn(12, 2, requires_grad=True)
    made_before: list[weakref.ref[Tensor]] = []

    def make() -> Tensor:
        weight = joined_weight(group, torch.float32)
        made_before.append(weakref.ref(weight))
        return weight

    def through(weight: Tensor) -> Tensor:
        return low_rank_linear(x, weight, None, [12], [(a, b, 0.5)])

    plain = torch.autograd.grad(through(joined_weight(group, torch.float32)).square().sum(), (x, a, b))
    weight = make()
    with recomputed(weight, make):
        y = through(weight)
    del weight
    assert [of() is None for of in made_before] == [True]
    found = torch.autograd.grad(y.square().sum(), (x, a, b))
    assert len(made_before) > 1 and all(of() is None for of in made_before)
    for slope, wanted in zip(found, plain, strict=True):
        assert torch.equal(slope, wanted)
