"""A model put together tensor by tensor, so that no more than a layer of it is ever held in full precision."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from finetooth_hooks.protocols import Quantizer
from finetooth_toolbox.cli.working import show_share
from torch import Tensor, nn

from finetooth_torchshared.kept_in_fp32 import kept_in_fp32
from finetooth_torchshared.plain_modules import is_only_read
from finetooth_torchshared.quantised import QuantisedLinear, check_any, store_experts, stored_linear

ReadModule = Callable[[nn.Linear], QuantisedLinear]
"""Replaces a linear module without memory by one with the file's stored weights."""


Settle = Callable[[str, nn.Module], None]
"""Called with a module's path in its model and the module, whose own tensors are there."""

_settles: ContextVar[Settle | None] = ContextVar("settles", default=None)


@contextmanager
def settling(settle: Settle) -> Iterator[None]:
    """While entered, models that are put together module by module give each to `settle`."""
    token = _settles.set(settle)
    try:
        yield
    finally:
        _settles.reset(token)


def settled(path: str, module: nn.Module) -> None:
    """A module has been read, and stored if it is stored in fewer bits."""
    if (settle := _settles.get()) is not None:
        settle(path, module)


class CannotAssemble(Exception):
    """The tensors are not the model's by their names, or the model computes with numbers that no file has."""


def assembled(
    model: nn.Module,
    names: Collection[str],
    read: Callable[[str], Tensor],
    *,
    dtype: torch.dtype,
    device: str,
    quantizer: Quantizer | None = None,
    stored: Mapping[str, ReadModule] | None = None,
    in_fp32: Collection[str] = (),
    without: Collection[str] = (),
) -> nn.Module:
    """Fill a transformers model that was made without memory (on torch's device `meta`), in place.

    Args:
        names: names of the tensors that exist as plain numbers.
        read: reads one of them; called once for each.
        dtype: of plain numbers, except those that the model keeps in fp32.
        quantizer: stores linear modules, one after the other.
        stored: linear modules that are stored already, by path.
        in_fp32: names of tensors that stay in fp32, in addition to those that the model keeps so.
        without: paths of modules whose parameters are not read and stay without memory.

    Raises:
        CannotAssemble: names or shapes differ; the model is then unusable.
        RecipeError: see `quantised.quantise`.
    """
    whole: Any = model
    head, ready = whole.get_output_embeddings(), stored or {}
    in_fp32 = {*in_fp32, *kept_in_fp32(model, dtype)}
    tied = set(whole.all_tied_weights_keys)
    wanted = _names(model, skipped=ready) - tied
    if differing := wanted.symmetric_difference(set(names) - tied):
        raise CannotAssemble(f"{len(differing)} tensors have other names, such as {min(differing)}")
    _make_buffers(whole)

    def number(name: str) -> Tensor:
        tensor = read(name)
        wanted = torch.float32 if name in in_fp32 else dtype
        return tensor.to(dtype=wanted) if tensor.is_floating_point() else tensor

    count, paths = 0, [path for path, _ in model.named_modules()]
    for done, path in enumerate(paths):
        show_share(done / len(paths))
        module: Any = model.get_submodule(path)
        if path in ready:
            settled(path, made := ready[path](module).to(device))
            _put(model, path, made)
            continue
        absent = any(f"{path}.".startswith(f"{other}.") for other in without)
        for name, parameter in list(module._parameters.items()):
            full = f"{path}.{name}" if path else name
            if parameter is not None and full not in tied and not absent:
                numbers = number(full)
                if numbers.shape != parameter.shape:
                    raise CannotAssemble(f"{full} has another shape")
                module._parameters[name] = nn.Parameter(numbers, requires_grad=parameter.requires_grad)
                del numbers
        for name, buffer in list(module._buffers.items()):
            if buffer is not None and name not in module._non_persistent_buffers_set:
                module._buffers[name] = number(f"{path}.{name}" if path else name)
        if quantizer and (experts := store_experts(path, module, quantizer, device)):
            count += experts
            for inner, stored_one in module.named_modules(prefix=path):
                if isinstance(stored_one, QuantisedLinear):
                    settled(inner, stored_one)
        linear = isinstance(module, nn.Linear) and module is not head and not is_only_read(model, path)
        if quantizer and linear and quantizer.takes(path, (module.out_features, module.in_features)):
            settled(path, made := stored_linear(path, module, quantizer, device))
            _put(model, path, made)
            count += 1
            continue
        if device != "cpu":
            _move(module, device)
        settled(path, module)
    if quantizer is not None:
        check_any(count, quantizer)
    whole.tie_weights()
    return model.eval()


def _names(model: nn.Module, skipped: Collection[str]) -> set[str]:
    """Names of all tensors that files hold, but for those of some modules."""
    names = set()
    for path, module in model.named_modules():
        if path in skipped:
            continue
        buffers = {name for name in module._buffers if name not in module._non_persistent_buffers_set}
        own = {name: of for name, of in (*module._parameters.items(), *module._buffers.items()) if of is not None}
        names |= {f"{path}.{name}" if path else name for name in own if name in module._parameters or name in buffers}
    return names


def _make_buffers(model: Any) -> None:
    """Give what no file has its numbers: tables of rotary embeddings, numbers of positions and the like.

    Raises:
        CannotAssemble: the model does not make them when it is asked to initialise the module, or one around it.
    """
    owners: dict[str, Any] = {}  # by a module's path, the innermost model that it is of: that one initialises it
    unmade: dict[str, list[str]] = {}
    for path, module in model.named_modules():
        owners[path] = module if hasattr(module, "_init_weights") else owners[path.rpartition(".")[0]]
        names = [name for name in module._non_persistent_buffers_set if module._buffers[name] is not None]
        for name in names:
            buffer = module._buffers[name]
            if buffer.dtype == torch.bool:
                raise CannotAssemble(f"{path}.{name} holds no numbers")
            module._buffers[name] = torch.full(buffer.shape, _nothing(buffer.dtype), dtype=buffer.dtype)
        if names:
            unmade[path] = names
    for path, names in unmade.items():
        module, around = model.get_submodule(path), path
        while True:
            owners[around]._init_weights(model.get_submodule(around))
            missing = [name for name in names if not _is_made(module._buffers[name])]
            if not missing or not around:
                break
            around = around.rpartition(".")[0]
        if missing:
            raise CannotAssemble(f"nothing makes {path}.{missing[0]}")


def _nothing(dtype: torch.dtype) -> float | int:
    """A marker value that no real buffer holds: NaN, or the smallest integer."""
    return math.nan if dtype.is_floating_point or dtype.is_complex else torch.iinfo(dtype).min


def _is_made(buffer: Tensor) -> bool:
    if buffer.is_floating_point() or buffer.is_complex():
        return bool(buffer.isfinite().all())
    return bool((buffer != _nothing(buffer.dtype)).all())


def _put(model: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, module)


def _move(module: nn.Module, device: str) -> None:
    """A module's own tensors, not those of modules inside it."""
    for name, parameter in module._parameters.items():
        if parameter is not None and parameter.device.type != "meta":
            module._parameters[name] = nn.Parameter(parameter.to(device), requires_grad=parameter.requires_grad)
    for name, buffer in module._buffers.items():
        if buffer is not None:
            module._buffers[name] = buffer.to(device)
