"""Quantised linear modules of torch, and their insertion into a model."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

import torch
from finetooth_hooks.errors import RecipeError
from finetooth_hooks.protocols import Quantizer
from finetooth_toolbox import blame
from finetooth_toolbox.text.nearest import nearest
from torch import Tensor, nn

from finetooth_torchshared.plain_modules import called_linear, is_only_read
from finetooth_torchshared.stored_experts import (
    PLACES,
    as_linear,
    is_stored,
    put_stored,
    restored,
    weights_of_experts,
)  # fmt: skip

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Types of the numbers that weights are turned back into, by their names in a recipe."""

PIECE = 1 << 16
"""Weights that are turned into numbers at once on a processor: what a format makes in between is several times as much.
As small as this it stays in the cache, and fits into holes of malloc's; of pieces four times as large the holes grew by
80 to 170 MB with SmolLM2-135M."""


class QuantisedLinear(nn.Module):
    """A linear module without a weight that could be read: what a quantizer puts in the place of `torch.nn.Linear`.

    What it stores lies in buffers. Adapters and backends know it by this class: they may call it, and nothing else.

    Args:
        inputs, outputs: sizes.
        bias: (outputs,), which stays as it is; None: there is none.
    """

    def __init__(self, inputs: int, outputs: int, bias: Tensor | None = None) -> None:
        super().__init__()
        self.in_features, self.out_features = inputs, outputs
        self.register_buffer("bias", None if bias is None else bias.detach())

    @property
    def qweight(self) -> Tensor:
        """The first of what is stored: under this name peft looks for the device of a quantised layer."""
        return next(buffer for name, buffer in self.named_buffers() if name != "bias")

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


class DequantisingLinear(QuantisedLinear):
    """One that turns what it stores back into numbers for each pass, and forgets them after it: between forward and
    backward nothing of the weight is held but what is stored."""

    @abstractmethod
    def dequantised(self, dtype: torch.dtype) -> Tensor:
        """The weight as numbers: (outputs, inputs), a new tensor each time, where the buffers are."""

    def dequantised_rows(self, first: int, last: int, dtype: torch.dtype) -> Tensor:
        """(last - first, inputs) of the weight; formats whose outputs are stored apart read no others."""
        return self.dequantised(dtype)[first:last]

    def write(self, numbers: Tensor) -> None:
        """Put the weight into memory that there is, (outputs, inputs) floating point, where the buffers are."""
        numbers.copy_(self.dequantised(numbers.dtype))

    def forward(self, hidden: Tensor) -> Tensor:
        """x W^T + b.

        Args:
            hidden: (..., inputs), floating point; the weight is multiplied with in its dtype.

        Returns:
            (..., outputs).
        """
        result: Tensor = _Multiply.apply(hidden, None, self)  # type: ignore[no-untyped-call]
        return result

    def plus(self, hidden: Tensor, added: Tensor) -> Tensor:
        """x W^T + b + added, where product and addition are summed before they are rounded.

        Args:
            added: (..., outputs).
        """
        result: Tensor = _Multiply.apply(hidden, added, self)  # type: ignore[no-untyped-call]
        return result


class RowsApart(DequantisingLinear):
    """One whose outputs are stored apart. On a processor a few of them become numbers at a time, so that the weight as
    numbers is all that is ever there of its size.

    Attributes:
        at_once: times as many as of other formats; more than 1 where little is made in between, and calls cost most.
    """

    at_once: ClassVar[int] = 1

    @abstractmethod
    def dequantised_rows(self, first: int, last: int, dtype: torch.dtype) -> Tensor: ...

    def dequantised(self, dtype: torch.dtype) -> Tensor:
        """See `DequantisingLinear`."""
        device = self.qweight.device
        if device.type != "cpu":  # there each operation costs as much as those on many rows
            return self.dequantised_rows(0, self.out_features, dtype)
        numbers = torch.empty(self.out_features, self.in_features, dtype=dtype)
        self.write(numbers)
        return numbers

    def write(self, numbers: Tensor) -> None:
        """See `DequantisingLinear`."""
        rows = max(1, self.at_once * PIECE // max(1, self.in_features))
        for first in range(0, self.out_features, rows):
            last = min(first + rows, self.out_features)
            numbers[first:last] = self.dequantised_rows(first, last, numbers.dtype)


class _Multiply(torch.autograd.Function):
    """x W^T + b, and what is added to it, whose W is made again in backward: dx = dy W."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, added: Tensor | None, module: DequantisingLinear) -> Tensor:
        ctx.module, ctx.added = module, None if added is None else added.dtype
        bias: Any = module.bias
        bias = None if bias is None else bias.to(hidden.dtype)
        weight = module.dequantised(hidden.dtype)
        if added is None:
            return nn.functional.linear(hidden, weight, bias)
        rows = torch.addmm(added.to(hidden.dtype).flatten(0, -2), hidden.flatten(0, -2), weight.t())
        summed = rows.view(*hidden.shape[:-1], -1)
        return summed if bias is None else summed + bias

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        (slope,) = slopes
        into = None if ctx.added is None else slope.to(ctx.added)
        return slope @ ctx.module.dequantised(slope.dtype), into, None


def quantise(model: nn.Module, quantizer: Quantizer, device: str) -> nn.Module:
    """Store the linear weights of a model that lies in host memory and move it to a device, module by module: of what
    is quantised only the result gets there, and each weight is released before the next one is read. `model` is
    changed in place. Head and embeddings stay as they are; experts held as one weight are stored too.

    Raises:
        RecipeError: the quantizer takes no module of the model, what it gave is none, or a weight is not finite.
    """
    if not stores_apart(quantizer):
        check_any(quantizer.calibrate(model, device=device), quantizer)
        return model.to(device)
    count = 0
    for path in [path for path, _ in model.named_modules()]:  # a list of modules would hold all of them to the end
        module = model.get_submodule(path)
        count += store_experts(path, module, quantizer, device)
        if (linear := called_linear(model, path)) is None:
            continue
        if not quantizer.takes(path, (linear.out_features, linear.in_features)):
            continue
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, stored_linear(path, linear, quantizer, device))
        count += 1
        del module, linear
    check_any(count, quantizer)
    return model.to(device)


def storable(model: nn.Module) -> dict[str, tuple[int, int]]:
    """(outputs, inputs) of what a quantizer may store, and of the head, by path: linear modules of plain numbers, and
    weights of experts held as one, whose outputs are those of all experts.

    Args:
        model: may be without memory.
    """
    sizes = {}
    for path, module in model.named_modules():
        if isinstance(module, nn.Linear) and not is_only_read(model, path):
            sizes[path] = (module.out_features, module.in_features)
        for name, weight in weights_of_experts(module).items():
            sizes[f"{path}.{name}"] = (weight.shape[0] * weight.shape[1], weight.shape[2])
    return sizes


def check_skip(model: nn.Module, quantizer: Quantizer) -> None:
    """Checks that each path in `Quantizer.skip` ends the path of a weight.

    Raises:
        RecipeError: one of `Quantizer.skip` ends the path of nothing that could be stored.
    """
    names = storable(model)
    lost = [end for end in quantizer.skip if not any(path.endswith(end) for path in names)]
    if not lost:
        return
    ends = sorted({path.rpartition(".")[2] for path in names})
    close = nearest(lost[0].rpartition(".")[2], ends)
    raise RecipeError(
        "quantization.skip",
        f"no weight of this model that could be stored has a path that ends in {', '.join(map(repr, lost))}",
        action=f"write {close}" if close else f"name the end of a path: {', '.join(ends[:12])}",
    )


def stores_apart(quantizer: Quantizer) -> bool:
    """Whether each module is stored by itself; else the model must be there as a whole."""
    return "calibrate" not in quantizer.capabilities


def stored_linear(path: str, module: nn.Linear, quantizer: Quantizer, device: str) -> QuantisedLinear:
    """A quantizer's replacement of a module.

    Args:
        path: of the module in its model.

    Raises:
        RecipeError: a weight is not finite, or the quantizer returned something else than a `QuantisedLinear`.
    """
    if not module.weight.isfinite().all():
        raise RecipeError(
            "quantization",
            f"the weight of {path} holds NaN or infinity, which {quantizer.stored.name} cannot store",
            action="check the model's files",
        )
    made = quantizer.linear(module, device=device)
    if not isinstance(made, QuantisedLinear):
        raise RecipeError(
            "quantization",
            f"the quantizer of {quantizer.stored.name} gave a {type(made).__name__} for {path}",
            action="its `linear` must give a finetooth_torchshared.quantised.QuantisedLinear",
        )
    if (key := (type(made), id(quantizer))) not in _tried:
        _tried.add(key)
        if problem := _wrong_product(made, module, device):
            raise RecipeError(
                "quantization",
                f"{blame.whose(type(made))}{type(made).__name__} {problem} for {path}{blame.where(type(made))}",
                action="choose another quantizer, or fix this one",
            )
    return made


_tried: set[tuple[type, int]] = set()
"""Classes with a checked product, by quantizer: one module of a class is enough."""


def _wrong_product(made: QuantisedLinear, module: nn.Linear, device: str) -> str:
    """The fault of a stored module's output for two rows; empty if it is right."""
    rows = torch.ones(2, module.in_features, dtype=module.weight.dtype, device=device)
    with torch.no_grad():
        out: Any = made(rows)
    if not isinstance(out, Tensor):
        return f"gave {blame.shown(out)} no tensor,"
    if out.shape != (2, module.out_features):
        return f"gave shape {tuple(out.shape)} in place of {(2, module.out_features)}"
    return "" if out.isfinite().all() else "gave NaN or infinity of finite numbers"


def store_experts(path: str, module: nn.Module, quantizer: Quantizer, device: str) -> int:
    """Store the weights of experts that a module holds as one, in its place.

    Args:
        path: of the module in its model.

    Returns:
        How many.

    Raises:
        RecipeError: see `stored_linear`; or what it gave for one weight cannot be read as numbers, which the code of a
            model's experts must.
    """
    made: dict[str, nn.Module] = {}
    for name, weight in weights_of_experts(module).items():
        full = f"{path}.{name}"
        if not _is_plain(weight) or not quantizer.takes(full, (weight.shape[0] * weight.shape[1], weight.shape[2])):
            continue
        stored = stored_linear(full, as_linear(weight), quantizer, device)
        if not isinstance(stored, DequantisingLinear):
            raise RecipeError(
                "quantization",
                f"{full} holds experts as one weight, and {quantizer.stored.name} computes with its codes themselves",
                action=f"set quantization.skip: [{name}], or choose another",
            )
        made[name] = stored
    if made:
        put_stored(module, made)
    return len(made)


def check_any(count: int, quantizer: Quantizer) -> None:
    """Checks that at least one module was stored.

    Raises:
        RecipeError: no module of the model was stored.
    """
    if not count:
        raise RecipeError(
            "quantization",
            f"{quantizer.stored.name} takes no linear module of this model",
            action="remove quantization, or choose another",
        )


def dequantise(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Put linear modules of plain numbers in the place of those that are stored in fewer bits, each with the numbers
    that it computed with. `model` is changed in place; an adapter's layers stay over them.

    Raises:
        RecipeError: a module cannot say its weight: it is a library's, or computes with its codes themselves.
    """
    paths = [path for path, _ in model.named_modules() if PLACES not in path.split(".")]
    for path in paths:
        module = model.get_submodule(path)
        if is_stored(module):
            restored(module, dtype)
        if reads_as_numbers(module):
            continue
        if not isinstance(module, DequantisingLinear):
            raise RecipeError(
                "quantization",
                f"{path} is a {type(module).__name__}, whose weight cannot be read as numbers",
                action="keep the model as it is stored",
            )
        plain = nn.Linear(module.in_features, module.out_features, bias=False, device="meta")
        plain.weight = nn.Parameter(module.dequantised(dtype), requires_grad=False)
        if (bias := module._buffers["bias"]) is not None:
            plain.bias = nn.Parameter(bias.to(dtype), requires_grad=False)
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, plain.train(module.training))
    return model


def stored_weights(model: nn.Module) -> int:
    """How many weights of the model are stored by a quantizer, less what of them counts as parameters: bytes that ranks
    divide."""
    stored = [module for module in model.modules() if isinstance(module, QuantisedLinear)]
    weights = sum(module.in_features * module.out_features for module in stored)
    return weights - sum(row.numel() for module in stored for row in module.parameters(recurse=False))


def is_quantised(model: nn.Module) -> bool:
    """Whether a weight of the model is stored in fewer bits, by whatever method: linear modules, or the experts that
    some models hold as one weight."""
    linear = any(not reads_as_numbers(module) for module in model.modules())
    return linear or any(not _is_plain(parameter) for parameter in model.parameters())


def reads_as_numbers(module: Any) -> bool:
    """Whether a linear module's weight can be read and multiplied with as it is: not one of packed bits."""
    if isinstance(module, QuantisedLinear):
        return False
    return _is_plain(getattr(module, "weight", None)) if _is_linear(module) else True


def _is_linear(module: Any) -> bool:
    """Whether it is a linear module, by its class or, as those of the libraries that quantise, by its sizes."""
    sizes = (getattr(module, "in_features", None), getattr(module, "out_features", None))
    return isinstance(module, nn.Linear) or all(isinstance(size, int) for size in sizes)


def _is_plain(weight: Any) -> bool:
    """Whether it is a tensor of torch's own whose elements are the numbers themselves: neither packed bits, nor bytes
    that mean something only together with scales, nor a tensor of a library that quantises."""
    if not isinstance(weight, Tensor) or not weight.is_floating_point() or weight.element_size() == 1:
        return False
    return type(weight.data).__module__.partition(".")[0] == "torch"
