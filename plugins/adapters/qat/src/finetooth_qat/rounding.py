"""Linear modules that compute with rounded weights, and their conversion after training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from finetooth_hooks.protocols import Quantizer
from finetooth_torchshared.quantised import DequantisingLinear, check_any, stored_linear
from torch import Tensor, nn


class _Rounded(torch.autograd.Function):
    """The rounded numbers of a weight in a format; backward passes the gradient through."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, module: RoundedLinear) -> Tensor:
        return module.levels()

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor, None]:
        return slopes[0], None


class RoundedLinear(nn.Linear):
    """x Q(W)^T + b."""

    quantizer: Quantizer
    path: str

    def levels(self) -> Tensor:
        """Q(W) in the weight's dtype: the values after storing and reading."""
        plain = nn.Linear(self.in_features, self.out_features, bias=False, device="meta")
        plain.weight = nn.Parameter(self.weight.detach(), requires_grad=False)
        made: Any = stored_linear(self.path, plain, self.quantizer, str(self.weight.device))
        assert isinstance(made, DequantisingLinear)
        return made.dequantised(self.weight.dtype)

    def forward(self, hidden: Tensor) -> Tensor:
        rounded = _Rounded.apply(self.weight, self)  # type: ignore[no-untyped-call]
        return nn.functional.linear(hidden, rounded, self.bias)


def round_weights(model: nn.Module, quantizer: Quantizer) -> None:
    """Make the linear modules that a quantizer supports, except the head, compute with rounded weights.

    Raises:
        RecipeError: the quantizer supports no linear module of the model.
    """
    head: Any = getattr(model, "get_output_embeddings", lambda: None)()
    count = 0
    for path, module in model.named_modules():
        if type(module) is not nn.Linear or module is head:
            continue
        if quantizer.takes(path, (module.out_features, module.in_features)):
            rounded: Any = module
            rounded.__class__ = RoundedLinear  # its parameters keep their names and objects
            rounded.quantizer, rounded.path = quantizer, path
            count += 1
    check_any(count, quantizer)


@contextmanager
def converted(model: nn.Module) -> Iterator[float]:
    """Inside the `with` block, the model holds its weights rounded, as ordinary linear modules.

    Yields:
        The relative rounding error: root mean square of the difference over that of the weights.
    """
    modules: list[Any] = [module for module in model.modules() if isinstance(module, RoundedLinear)]
    trained = [module.weight.data for module in modules]
    moved = size = 0.0
    try:
        for module, weight in zip(modules, trained, strict=True):
            module.weight.data = module.levels()
            moved += float((module.weight.data - weight).float().square().sum())
            size += float(weight.float().square().sum())
            module.__class__ = nn.Linear
        yield (moved / size) ** 0.5 if size else 0.0
    finally:
        for module, weight in zip(modules, trained, strict=True):
            module.weight.data, module.__class__ = weight, RoundedLinear
