"""Going through a model layer by layer: what its linear modules read, rounded over it, and what comes out of that."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

Store = Callable[[str, nn.Linear, Tensor], nn.Module]
"""From a module's path, the module and its Hessian (inputs, inputs) fp32 to what stands in its place."""


class _Reached(Exception):
    """The first layer was called."""


@torch.no_grad()
def calibrate(
    model: nn.Module, layers: str, rows: Sequence[Sequence[int]], takes: Callable[..., bool], store: Store
) -> int:
    """Store the linear modules of the layers, one layer after the other: each reads what those before it, already
    stored, give.

    Args:
        layers: path of the list of decoder layers.
        rows: of token ids.
        takes: whether a module is stored, by its path and shape.
        store: see `Store`.

    Returns:
        How many modules were stored.
    """
    stack: Any = model.get_submodule(layers)
    model.eval()
    given = [_inputs_of_first(model, stack[0], row) for row in rows]
    found = 0
    for index, layer in enumerate(stack):
        linear = {
            name: module
            for name, module in layer.named_modules()
            if isinstance(module, nn.Linear) and takes(f"{layers}.{index}.{name}", tuple(module.weight.shape))
        }
        hessians = _hessians(layer, linear, given)
        for name in list(linear):
            module = linear.pop(name)
            made = store(f"{layers}.{index}.{name}", module, hessians.pop(name))
            parent, _, last = name.rpartition(".")
            setattr(layer.get_submodule(parent), last, made)
            found += 1
        for at, (args, kwargs) in enumerate(given):
            out = layer(*args, **kwargs)
            given[at] = ((out[0] if isinstance(out, tuple) else out, *args[1:]), kwargs)
    return found


def _inputs_of_first(model: Any, first: nn.Module, row: Sequence[int]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What the first layer is called with for a row, hidden states first."""
    seen: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def look(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not args:
            args = (kwargs.pop("hidden_states"),)
        seen.append((args, kwargs))
        raise _Reached

    handle = first.register_forward_pre_hook(look, with_kwargs=True)
    try:
        model(input_ids=torch.tensor([list(row)]), use_cache=False)
    except _Reached:
        pass
    finally:
        handle.remove()
    return seen[0]


def _hessians(layer: nn.Module, linear: dict[str, nn.Linear], given: Sequence[Any]) -> dict[str, Tensor]:
    """X X^T of what each module reads in all rows."""
    found = {name: torch.zeros(module.in_features, module.in_features) for name, module in linear.items()}

    def watch(name: str) -> Any:
        def look(module: nn.Module, args: tuple[Any, ...]) -> None:
            read = args[0].detach().flatten(0, -2).float()
            found[name].addmm_(read.t(), read)

        return look

    handles = [module.register_forward_pre_hook(watch(name)) for name, module in linear.items()]
    try:
        for args, kwargs in given:
            layer(*args, **kwargs)
    finally:
        for handle in handles:
            handle.remove()
    return found
