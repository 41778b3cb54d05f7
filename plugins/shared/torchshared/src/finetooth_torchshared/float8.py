"""Makes linear modules of a model multiply in 8-bit floating point, without changing their weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn

from finetooth_torchshared.plain_modules import ROUTERS

__all__ = ["Float8Linear", "multiply_in_fp8", "plain_linears"]


class Float8Linear(nn.Linear):
    """x W^T + b by the operation `fp8_linear`. It can only be called: a product with the weight is another number.

    Attributes:
        compute: the operation.
    """

    compute: Callable[..., Any]

    def forward(self, hidden: Tensor) -> Tensor:
        """See `nn.Linear`; (..., inputs) to (..., outputs)."""
        return self._product(hidden, None)

    def plus(self, hidden: Tensor, added: Tensor) -> Tensor:
        """x W^T + b + added, where product and addition are summed before they are rounded.

        Args:
            added: (..., outputs).
        """
        return self._product(hidden, added.flatten(0, -2))

    def _product(self, hidden: Tensor, added: Tensor | None) -> Tensor:
        rows: Tensor = self.compute(hidden.flatten(0, -2), self.weight, self.bias, added)
        return rows.view(*hidden.shape[:-1], -1)


def plain_linears(layers: nn.Module) -> list[nn.Linear]:
    """Linear modules of plain numbers in a model's layers, but for routers: which experts a token takes is decided by
    small differences."""
    named = layers.named_modules()
    return [module for path, module in named if type(module) is nn.Linear and path.rpartition(".")[2] not in ROUTERS]


def multiply_in_fp8(modules: Iterable[nn.Linear], compute: Callable[..., Any]) -> None:
    """Let linear modules multiply in 8 bits.

    Args:
        compute: the operation `fp8_linear`.
    """
    for module in modules:
        changed: Any = module
        changed.__class__ = Float8Linear  # its parameters keep their names and their places
        changed.compute = compute
