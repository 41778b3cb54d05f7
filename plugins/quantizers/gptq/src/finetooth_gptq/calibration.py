"""Going through a model layer by layer: what its linear modules read, rounded over it, and what comes out of that."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from typing import Any

import torch
from finetooth_torchshared.stored_experts import put_stored, weights_of_experts
from torch import Tensor, nn

from finetooth_gptq.expert_inputs import ExpertInputs

Store = Callable[[str, nn.Linear, Tensor], nn.Module]
"""From a module's path, the module and its Hessian (inputs, inputs) fp32 to what stands in its place."""

StoreExperts = Callable[[str, Tensor, Mapping[int, Tensor]], nn.Module]
"""From a path, a weight (experts, outputs, inputs) and the Hessians of the experts that were reached, by their numbers,
to what stands in its place: a `DequantisingLinear` of the weight as `stored_experts.as_linear` has it. No Hessian at
all says that the model's code does not multiply as linear modules do."""


Ready = Callable[[str, nn.Module, dict[str, Tensor], Callable[[], Tensor]], None]
"""May change a layer before it is stored: its path, the layer, the Hessians of its linear modules, to be changed with
what they read, and its output for the first row."""


class _Reached(Exception):
    """The first layer was called."""


@torch.no_grad()
def calibrate(
    model: nn.Module, layers: str, rows: Sequence[Sequence[int]], takes: Callable[..., bool], store: Store,
    store_experts: StoreExperts, ready: Ready | None = None, device: str = "cpu",
) -> int:  # fmt: skip
    """Store the linear modules of the layers, and experts that are held as one weight, one layer after the other: each
    reads what those before it, already stored, give.

    Args:
        layers: path of the list of decoder layers.
        rows: of token ids.
        takes: whether a module is stored, by its path and shape.
        store: see `Store`.
        store_experts: see `StoreExperts`.
        ready: see `Ready`.
        device: where everything is computed: one layer at a time moves there and stays. What layers give lies where the
            model does, and goes there row by row.

    Returns:
        How many modules and weights of experts were stored.
    """
    with _one_by_one(model):
        return _by_layer(model, layers, rows, takes, store, store_experts, ready, device)


def _by_layer(
    model: nn.Module, layers: str, rows: Sequence[Sequence[int]], takes: Callable[..., bool], store: Store,
    store_experts: StoreExperts, ready: Ready | None, device: str,
) -> int:  # fmt: skip
    stack: Any = model.get_submodule(layers)
    model.eval()
    batches = [_inputs_of_first(model, stack[0], row, device) for row in rows]
    count = 0
    for index, layer in enumerate(stack):
        layer.to(device)
        linear = {
            name: module
            for name, module in layer.named_modules()
            if isinstance(module, nn.Linear) and takes(f"{layers}.{index}.{name}", tuple(module.weight.shape))
        }
        experts = {
            f"{path}.{name}": (module, name, weight)
            for path, module in layer.named_modules()
            for name, weight in weights_of_experts(module).items()
            if takes(f"{layers}.{index}.{path}.{name}", (weight.shape[0] * weight.shape[1], weight.shape[2]))
        }
        inputs = ExpertInputs({path: weight for path, (_, _, weight) in experts.items()})
        hessians = _hessians(layer, linear, batches, inputs, device)
        if ready is not None:
            ready(f"{layers}.{index}", layer, hessians, partial(_output, layer, batches[0], device))
        for name in list(linear):
            module = linear.pop(name)
            made = store(f"{layers}.{index}.{name}", module, hessians.pop(name))
            parent, _, last = name.rpartition(".")
            setattr(layer.get_submodule(parent), last, made)
            count += 1
        places: dict[nn.Module, dict[str, nn.Module]] = {}
        for path in list(experts):
            holder, name, weight = experts.pop(path)
            made = store_experts(f"{layers}.{index}.{path}", weight.detach(), inputs.taken(path))
            places.setdefault(holder, {})[name] = made
            count += 1
        for holder, stored in places.items():
            put_stored(holder, stored)
        for at, batch in enumerate(batches if index + 1 < len(stack) else ()):
            (states, *others), named = batch
            batches[at] = ((_output(layer, batch, device).to(states.device), *others), named)
    return count


def _output(layer: nn.Module, batch: tuple[tuple[Any, ...], dict[str, Any]], device: str) -> Tensor:
    """Hidden states that a layer gives for a row, on its device."""
    (states, *others), named = batch
    out = layer(states.to(device), *others, **named)
    made: Tensor = out[0] if isinstance(out, tuple) else out
    return made


def _inputs_of_first(
    model: Any, first: nn.Module, row: Sequence[int], device: str
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What the first layer is called with for a row, hidden states first; all others on the device."""
    seen: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def look(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not args:
            args = (kwargs.pop("hidden_states"),)
        seen.append(((args[0], *_moved(args[1:], device)), _moved(kwargs, device)))
        raise _Reached

    handle = first.register_forward_pre_hook(look, with_kwargs=True)
    try:
        with suppress(_Reached):  # the first layer is as far as a row has to come
            model(input_ids=torch.tensor([list(row)]).to(next(model.parameters()).device), use_cache=False)
    finally:
        handle.remove()
    return seen[0]


def _moved(given: Any, device: str) -> Any:
    """The same with its tensors on the device, in tuples and mappings too."""
    if isinstance(given, Tensor):
        return given.to(device)
    if isinstance(given, tuple):
        return tuple(_moved(of, device) for of in given)
    return {key: _moved(of, device) for key, of in given.items()} if type(given) is dict else given


@contextmanager
def _one_by_one(model: Any) -> Iterator[None]:
    """Inside the `with` block, experts compute one after the other, each with linear products, where the model's code
    can."""
    settable = getattr(model, "_can_set_experts_implementation", None)
    if settable is None or not settable():
        yield
        return
    before = model.get_experts_implementation()
    model.set_experts_implementation("eager")
    try:
        yield
    finally:
        model.set_experts_implementation(before)


def _hessians(
    layer: nn.Module, linear: dict[str, nn.Linear], batches: Sequence[Any], inputs: ExpertInputs, device: str
) -> dict[str, Tensor]:
    """X X^T of what each module reads in all rows; those of experts are collected in `inputs`."""
    sizes = {name: module.in_features for name, module in linear.items()}
    hessians = {name: torch.zeros(size, size, device=device) for name, size in sizes.items()}

    def watch(name: str) -> Any:
        def look(module: nn.Module, args: tuple[Any, ...]) -> None:
            read = args[0].detach().flatten(0, -2).float()
            hessians[name].addmm_(read.t(), read)

        return look

    handles = [module.register_forward_pre_hook(watch(name)) for name, module in linear.items()]
    try:
        with inputs if inputs.any else nullcontext():
            for batch in batches:
                _output(layer, batch, device)
    finally:
        for handle in handles:
            handle.remove()
    return hessians
