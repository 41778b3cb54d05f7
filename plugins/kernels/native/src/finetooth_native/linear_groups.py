"""Linear modules that read the same rows, as one matrix product: the parts that decoder layers consist of."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from finetooth_hooks.protocols import LowRank
from finetooth_kernels.decoder import FindLowRank, GroupParts, LayerOperations
from finetooth_kernels.dropout import Dropped, DropsByKeys
from finetooth_kernels.fp8 import rounding_once
from finetooth_kernels.low_rank_linear import Again, diagonal, gains
from finetooth_kernels.memory import Arena
from finetooth_torchshared.plain_modules import is_hooked, is_plain
from torch import Tensor, nn

from finetooth_native.stored_weights import is_stored, joined_weight, recomputed

__all__ = ["Group"]


class Group:
    """Linear modules that read the same rows.

    Their weights are moved into one buffer, of which each module's own weight becomes a view: no second copy, and what
    an optimizer or an adapter writes into a module's weight is in the buffer too. If a weight is ever replaced rather
    than written to, by one that does not lie in such a buffer, another is made. Where one is stored in fewer bits, the
    numbers are made for each product. Where one is more than its weight and a low-rank addition (it multiplies in 8
    bits, or drops from rows that have no keys), each is called.

    Args:
        modules: as they are in the model, with or without an adapter's wrapper.
        low_rank: what the adapter says of a wrapped one.
        compute: multiplies.
        recomputed: the group is computed again in backward, so that nothing is kept for it.
    """

    def __init__(
        self, modules: Sequence[nn.Module], low_rank: FindLowRank, compute: LayerOperations, *, recomputed: bool = False
    ) -> None:
        self._modules, self._low_rank, self._linear = tuple(modules), low_rank, compute.low_rank_linear
        self._recomputed = recomputed

    def __call__(
        self, x_nd: Tensor, again: Again | None = None, base_no: Tensor | None = None, arena: Arena | None = None,
        *, passing: bool = False,
    ) -> Tensor:  # fmt: skip
        """(N, inputs) to (N, sum of outputs), side by side.

        Args:
            again: makes `x_nd` once more in backward, so that it need not be kept; see `low_rank_linear`.
            base_no: what the outputs are added to; the result has its dtype.
            arena, passing: where what is kept lies; see there too.
        """
        parts = self._known()
        dropped = None if parts is None else _dropped(parts, x_nd)
        if parts is None or dropped is None:
            y_no = self._called(x_nd, None if self._recomputed or arena is not None else again)
            return y_no if base_no is None else base_no + y_no
        layers = [part.base for part in parts]
        sizes = [layer.out_features for layer in layers]
        added = [None if part.a is None or part.b is None else (part.a, part.b, part.scale) for part in parts]
        lengths = [part.magnitude for part in parts]
        more: dict[str, Any] = {} if all(of is None for of in lengths) else {"magnitudes": lengths}
        if any(dropped):
            more["dropped"] = dropped
        if any(map(is_stored, layers)):
            make = partial(joined_weight, layers, x_nd.dtype)
            weight, trained = make(), [None] * len(layers)
            saving = nullcontext() if self._recomputed else recomputed(weight, make)
        else:
            weight, saving = _fused([layer.weight for layer in layers]), nullcontext()
            trained = [layer.weight if layer.weight.requires_grad else None for layer in layers]
        with saving:
            y: Tensor = self._linear(
                x_nd, weight, _biases(layers, weight), sizes, added, trained, again, base_no, arena,
                passing=passing, **more,
            )  # fmt: skip
        return y

    def _called(self, x_nd: Tensor, again: Again | None) -> Tensor:
        """By the modules themselves, as where they multiply in 8 bits.

        Args:
            again: makes what they keep of `x_nd` once more in backward; None: they keep it.
        """
        saving: AbstractContextManager[None] = nullcontext()
        if again is not None and x_nd.untyped_storage().nbytes() == x_nd.nbytes:
            make, sources = again
            saving = recomputed(x_nd, partial(make, *(source.detach() for source in sources)))
        with saving, rounding_once():
            return torch.cat([module(x_nd) for module in self._modules], -1)

    def parts(self, low_rank: FindLowRank | None = None) -> GroupParts | None:
        """See `finetooth_kernels.decoder.PlainGroup`."""
        parts = self._known() if low_rank is None else self._of(low_rank)
        if parts is None or any(is_stored(part.base) or part.dropout is not None for part in parts):
            return None
        layers = [part.base for part in parts]
        weight = _fused([layer.weight for layer in layers])
        bias = _biases(layers, weight)
        added = [(part.a.detach(), part.b.detach()) for part in parts if part.a is not None and part.b is not None]
        if not added:
            return GroupParts(weight, bias)
        a, b = zip(*added, strict=True)
        if any(of.dtype != weight.dtype for of in a):
            return None
        sizes = [layer.out_features for layer in layers]
        scales = [None if part.a is None or part.b is None else part.scale for part in parts]
        made = GroupParts(weight, bias, torch.cat(a), diagonal(b, sizes, scales))
        lengths = [part.magnitude for part in parts]
        if all(of is None for of in lengths):
            return made
        return replace(made, gains=gains(weight, sizes, scales, a, b, lengths)[1].detach())

    def lay_out(self) -> None:
        """Move the weights, if they are not there yet."""
        parts = self._known()
        if parts is not None and not any(is_stored(part.base) for part in parts):
            _fused([part.base.weight for part in parts])

    def _known(self) -> list[LowRank] | None:
        """What each module computes; None where one is more than that can say."""
        parts = [self._plain(module) for module in self._modules]
        known = [part for part in parts if part is not None]
        return known if len(known) == len(parts) else None

    def _of(self, low_rank: FindLowRank) -> list[LowRank] | None:
        """What the modules compute with another adapter; None where one is more than that can say, drops at random, or
        has DoRA, whose lengths rows with other adapters would be multiplied by as well."""
        own = self._known()
        if own is None or any(part.magnitude is not None or part.dropout is not None for part in own):
            return None
        adapted = [low_rank(module) for module in self._modules]
        return [LowRank(part.base) if other is None else other for part, other in zip(own, adapted, strict=True)]

    def _plain(self, module: nn.Module) -> LowRank | None:
        if _has_numbers(module):
            return LowRank(module)
        low_rank = self._low_rank(module)
        return low_rank if low_rank is not None and _has_numbers(low_rank.base) and not is_hooked(module) else None


def _dropped(parts: Sequence[LowRank], x_nd: Tensor) -> list[Dropped | None] | None:
    """What each part drops of these rows; None where only calls of the modules say that."""
    modules: list[DropsByKeys | None] = [part.dropout if hasattr(part.dropout, "keyed") else None for part in parts]
    keyed = [None if module is None else module.keyed(x_nd) for module in modules]
    known = all(part.dropout is None or of is not None for part, of in zip(parts, keyed, strict=True))
    return keyed if known else None


def _has_numbers(module: nn.Module) -> bool:
    """Whether a module is nothing but its weight, as it stands or stored, and a bias."""
    return is_plain(module) or is_stored(module)


def _fused(weights: Sequence[Tensor]) -> Tensor:
    """The weights as the rows of one matrix, without a graph; they are moved unless they lie so already."""
    first = weights[0].detach()
    if len(weights) == 1:
        return first
    at = first.data_ptr()
    for weight in weights:
        same = weight.untyped_storage().data_ptr() == first.untyped_storage().data_ptr()
        if not same or weight.data_ptr() != at or weight.dtype != first.dtype or not weight.is_contiguous():
            break
        at += weight.nbytes
    else:
        return first.as_strided((sum(weight.shape[0] for weight in weights), first.shape[1]), first.stride())
    fused = torch.cat([weight.detach() for weight in weights])
    parts: Any = fused.split([weight.shape[0] for weight in weights])  # type: ignore[no-untyped-call]
    for weight, rows in zip(weights, parts, strict=True):
        weight.data = rows
    return fused


def _biases(layers: Sequence[Any], weight_od: Tensor) -> Tensor | None:
    """Side by side, in the dtype of the weight; None without any."""
    if all(layer.bias is None for layer in layers):
        return None
    zeros = weight_od.new_zeros
    return torch.cat(
        [zeros(layer.out_features) if layer.bias is None else layer.bias.to(weight_od.dtype) for layer in layers]
    )
