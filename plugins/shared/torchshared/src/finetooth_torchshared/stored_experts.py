"""Experts that a model holds as one weight of three axes, stored in fewer bits.

The module that holds them computes as its own code has it and reads its weights by their names, which gives numbers
made again from what is stored. While it computes, what backward would keep of those numbers is replaced by where they
came from: between forward and backward nothing of the weight is held but what is stored."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from typing import Any, cast

import torch
from finetooth_kernels.grouped import LowRankAddition
from torch import Tensor, nn

PLACES = "stored_experts"
"""Under this name such a module has what it stores by the names of its weights."""


def weights_of_experts(module: nn.Module) -> dict[str, nn.Parameter]:
    """The weights of three axes that a module itself holds, by name; windows of convolutions are none."""
    if type(module).__module__.startswith("torch."):
        return {}
    own = {name: weight for name, weight in module._parameters.items() if weight is not None and weight.dim() == 3}
    return {name: weight for name, weight in own.items() if "conv" not in name}


def as_linear(weight: Tensor) -> nn.Linear:
    """A linear module whose outputs are those of all experts, one after the other.

    Args:
        weight: (experts, a, b).
    """
    experts, rows, columns = weight.shape
    module = nn.Linear(columns, experts * rows, bias=False, device="meta")
    module.weight = nn.Parameter(weight.detach().reshape(experts * rows, columns), requires_grad=False)
    return module


class ExpertWeight(nn.Module):
    """A weight of experts as it is stored.

    Args:
        stored: a `DequantisingLinear` of `as_linear`.
        shape: (experts, a, b) of the weight.
        dtype: of its numbers.
    """

    def __init__(self, stored: nn.Module, shape: tuple[int, int, int], dtype: torch.dtype) -> None:
        super().__init__()
        self.stored, self.shape, self.addition = stored, shape, None
        self.register_buffer("numbers_are", torch.empty(0, dtype=dtype), persistent=False)  # follows casts

    addition: LowRankAddition | None
    """(experts, a, rank), (experts, rank, b) and a scale: what is added is their product."""
    numbers_are: Tensor

    def base(self) -> Tensor:
        """(experts, a, b), without an addition."""
        stored: Any = self.stored
        made: Tensor = stored.dequantised(self.numbers_are.dtype)
        return made.contiguous().view(self.shape)  # rows may be parts of longer ones

    def of(self, first: int, last: int) -> Tensor:
        """(last - first, a, b), those experts' numbers, with what is added to them."""
        stored: Any = self.stored
        rows = self.shape[1]
        made: Tensor = stored.dequantised_rows(first * rows, last * rows, self.numbers_are.dtype)
        made = made.contiguous().view(last - first, *self.shape[1:])
        if self.addition is None:
            return made
        left, right, scale = self.addition
        return _summed(made, left.detach()[first:last], right.detach()[first:last], scale)

    def some(self, experts: Sequence[int]) -> Tensor:
        """(len(experts), a, b), the numbers of those experts alone, without an addition.

        Args:
            experts: in rising order.
        """
        stored: Any = self.stored
        rows, dtype = self.shape[1], self.numbers_are.dtype
        runs = [[of for _, of in run] for _, run in groupby(enumerate(experts), key=lambda pair: pair[1] - pair[0])]
        made = [stored.dequantised_rows(run[0] * rows, (run[-1] + 1) * rows, dtype) for run in runs]
        return torch.cat(made).view(len(experts), *self.shape[1:])

    def numbers(self) -> Tensor:
        """(experts, a, b); differentiable in its addition."""
        if self.addition is None:
            return self.base()
        left, right, scale = self.addition
        result: Tensor = _Sum.apply(left, right, scale, self)  # type: ignore[no-untyped-call]
        return result


class _Sum(torch.autograd.Function):
    """W + s L R, of which only L and R are kept."""

    @staticmethod
    def forward(ctx: Any, left: Tensor, right: Tensor, scale: float, weight: ExpertWeight) -> Tensor:
        ctx.save_for_backward(left, right)
        ctx.scale = scale
        return _summed(weight.base(), left, right, scale)

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        left, right = ctx.saved_tensors
        slope = slopes[0].to(left.dtype)
        return ctx.scale * (slope @ right.mT), ctx.scale * (left.mT @ slope), None, None


def _summed(weight: Tensor, left: Tensor, right: Tensor, scale: float) -> Tensor:
    return torch.baddbmm(weight, left.to(weight.dtype), right.to(weight.dtype), alpha=scale)


@dataclass(frozen=True)
class _Part:
    """Where a tensor lies in the numbers of a weight, or of some of its experts."""

    weight: ExpertWeight
    addition: LowRankAddition | None
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int
    experts: tuple[int, ...] | None

    def read(self) -> Tensor:
        if self.experts is not None:
            return self.weight.some(self.experts).as_strided(self.shape, self.strides, self.offset)
        each = self.weight.shape[1] * self.weight.shape[2]
        end = self.offset + sum((size - 1) * step for size, step in zip(self.shape, self.strides, strict=True))
        first, last = self.offset // each, end // each + 1
        before, self.weight.addition = self.weight.addition, self.addition
        try:
            made = self.weight.of(first, last)
        finally:
            self.weight.addition = before
        return made.as_strided(self.shape, self.strides, self.offset - first * each)


class _Saving:
    """The tensors to keep for backward while experts compute."""

    def __init__(self) -> None:
        self.read: dict[int, tuple[Tensor, ExpertWeight, LowRankAddition | None, tuple[int, ...] | None]] = {}
        """Numbers by the address of their memory, held while the experts compute: then no other tensor has it."""
        self.outer: Any = torch._C._autograd._top_saved_tensors_default_hooks(False)
        """Of the code that computes these layers (again, or keeps activations elsewhere); the innermost is asked."""

    def pack(self, tensor: Tensor) -> Any:
        place = self.read.get(tensor.untyped_storage().data_ptr())
        if place is not None and tensor.dtype == place[0].dtype:
            at = tuple(tensor.shape), tensor.stride(), int(tensor.storage_offset())
            return _Part(place[1], place[2], *at, place[3])
        return tensor if self.outer is None else (self.outer[1], self.outer[0](tensor))

    @staticmethod
    def unpack(kept: Any) -> Tensor:
        if isinstance(kept, _Part):
            return kept.read()
        if isinstance(kept, tuple):
            made: Tensor = kept[0](kept[1])
            return made
        result: Tensor = kept
        return result


@cache
def _class_of(made: type[nn.Module], names: tuple[str, ...]) -> type[nn.Module]:
    """The class of a module whose weights of these names are stored."""

    def reads(name: str) -> property:
        def read(self: Any) -> Tensor:
            weight: ExpertWeight = vars(self)["_modules"][PLACES][name]
            numbers = weight.numbers()
            saving: _Saving | None = vars(self).get("_saving")
            if saving is not None:
                saving.read[numbers.untyped_storage().data_ptr()] = (numbers.detach(), weight, weight.addition, None)
            return numbers

        return property(read)

    def forward(self: Any, *given: Any, **named: Any) -> Any:
        saving = vars(self)["_saving"] = _Saving()
        try:
            with torch.autograd.graph.saved_tensors_hooks(saving.pack, saving.unpack):
                return made.forward(self, *given, **named)
        finally:
            saving.read.clear()
            vars(self)["_saving"] = None

    content: dict[str, Any] = {name: reads(name) for name in names}
    content.update(forward=forward, __module__=made.__module__)
    return cast("type[nn.Module]", type(f"Stored{made.__name__}", (made,), content))


def put_stored(module: nn.Module, stored: dict[str, nn.Module]) -> None:
    """Replace a module's weights by stored ones.

    Args:
        stored: a `DequantisingLinear` of `as_linear` for each weight, by name.
    """
    weights = {}
    for name, linear in stored.items():
        before: Any = module._parameters.pop(name)
        weights[name] = ExpertWeight(linear, tuple(before.shape), before.dtype)
    module.add_module(PLACES, nn.ModuleDict(weights))
    made: Any = type(module)
    module.__class__ = _class_of(made, tuple(weights))


def is_stored(module: nn.Module) -> bool:
    """Whether weights of experts that the module holds are stored."""
    return PLACES in module._modules


def stored_in(module: nn.Module) -> dict[str, ExpertWeight]:
    """By the names of the weights; empty if none is."""
    weights: Any = module._modules.get(PLACES, {})
    return dict(weights.items())


def read_some(module: nn.Module, name: str, experts: tuple[int, ...]) -> Tensor:
    """(len(experts), a, b), the numbers of some experts of a stored weight: for code that computes with no others. The
    module is computing, and what backward would keep of them is made again there.

    Args:
        experts: in rising order.
    """
    weight = stored_in(module)[name]
    numbers = weight.some(experts)
    saving: _Saving = vars(module)["_saving"]
    saving.read[numbers.untyped_storage().data_ptr()] = (numbers, weight, None, experts)
    return numbers


def restored(module: nn.Module, dtype: torch.dtype) -> None:
    """Put plain numbers back, those that it computed with; `module` is changed in place."""
    made = {name: weight.stored.dequantised(dtype).contiguous().view(weight.shape) for name, weight in _all(module)}
    _to_plain(module)
    del module._modules[PLACES]
    for name, numbers in made.items():
        module.register_parameter(name, nn.Parameter(numbers, requires_grad=False))


@contextmanager
def with_shapes(model: nn.Module) -> Iterator[None]:
    """Inside the `with` block, a model's stored weights of experts look like parameters of their shapes, which take no
    memory: for code that looks for weights by their names and shapes."""
    stored = [module for module in model.modules() if is_stored(module)]
    kinds = [type(module) for module in stored]
    for module in stored:
        _to_plain(module)
        for name, weight in _all(module):
            numbers = weight.numbers_are.new_zeros(()).expand(weight.shape)
            module.register_parameter(name, nn.Parameter(numbers, requires_grad=False))
    try:
        yield
    finally:
        for module, kind in zip(stored, kinds, strict=True):
            for name, _ in _all(module):
                del module._parameters[name]
            module.__class__ = kind


def _all(module: nn.Module) -> list[tuple[str, Any]]:
    return list(stored_in(module).items())


def _to_plain(module: nn.Module) -> None:
    module.__class__ = type(module).__mro__[1]
