"""Replaces parts of a model, or copies them with other parameters, without changing the model, for `agreement`."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from finetooth_hooks.protocols import ModelFacts
from finetooth_torchshared.float8 import Float8Linear
from torch import Tensor, nn

WINDOWS = ("sliding_window", "attention_chunk_size")
"""Names of the attention window in configs and attention modules."""
WINDOW = 8
CAPS = ("attn_logit_softcapping",)
"""Names of the cap of attention scores."""
CAP = 2.0
NO_KIND = frozenset({"layer_idx", *vars(nn.Module())})
"""Attributes that may differ between layers of one kind."""


class Place(nn.Module):
    """Replaces `original`, and computes `call`."""

    def __init__(self, original: nn.Module, call: Callable[..., Any]) -> None:
        super().__init__()
        self.call = call
        self.__dict__["original"] = original  # not as a submodule

    def __getattr__(self, name: str) -> Any:  # models read attributes of their layers
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["original"], name)

    def forward(self, *given: Any, **named: Any) -> Any:
        return self.call(*given, **named)


def hand_on(hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
    """A layer that does nothing."""
    return hidden_states


def one_of_each_kind(layers: Sequence[nn.Module], path: str, config: Any) -> list[int]:
    """The first layer of every kind: the same modules with the same sizes and settings, and the same in what the config
    lists layer by layer.

    Args:
        path: of the layers in the model; some modules know their own name.
    """
    lists = [v for v in vars(config).values() if isinstance(v, list | tuple) and len(v) == len(layers)]
    first: dict[str, int] = {}
    for place, layer in enumerate(layers):
        kind = _kind(layer).replace(f"{path}.{place}.", "")
        first.setdefault(repr([kind, *(values[place] for values in lists)]), place)
    return list(first.values())


def _kind(layer: nn.Module) -> str:
    return repr(
        [
            (
                name,
                type(module),
                bool(module._forward_hooks or module._forward_pre_hooks),
                [(own, None if p is None else (p.dtype, p.shape)) for own, p in module._parameters.items()],
                [(key, _setting(value)) for key, value in vars(module).items() if key not in NO_KIND],
            )
            for name, module in layer.named_modules()
        ]
    )


def _setting(value: Any) -> str:
    """A setting as text; empty for anything else."""
    if isinstance(value, Mapping):
        return repr([_setting(inner) for inner in value.values()])
    if isinstance(value, list | tuple):
        return repr([_setting(inner) for inner in value])
    if callable(value):
        return repr(getattr(value, "__qualname__", type(value)))
    return repr(value) if value is None or isinstance(value, int | float | str) else ""


def exchanged(module: nn.Module, others: Mapping[str, nn.Module]) -> Any:
    """The module with other submodules at some paths; it shares everything else with the original.

    Raises:
        TypeError: a `forward` was put on the module itself, which would keep using the original's parts.
    """
    if "forward" in vars(module):
        raise TypeError(f"{type(module).__name__}.forward was replaced, and may hold on to the module it came from")
    twin = copy.copy(module)
    twin.__dict__["_modules"] = dict(module._modules)
    below: dict[str, dict[str, nn.Module]] = {}
    for path, other in others.items():
        name, _, rest = path.partition(".")
        if rest:
            below.setdefault(name, {})[rest] = other
        else:
            twin._modules[name] = other
    for name, inner in below.items():
        twin._modules[name] = exchanged(twin.get_submodule(name), inner)
    return twin


def redrawn_copy(module: nn.Module, generator: torch.Generator, config: Any = None) -> nn.Module:
    """A copy with new random parameters in float32, in evaluation mode, windows narrowed.

    Args:
        config: replaces the config of its modules.
    """
    twin = _copied(module, config, {})
    _draw(twin, generator)
    return twin


def _draw(module: nn.Module, generator: torch.Generator) -> None:
    """Matrices that keep magnitudes, and vectors (norms, biases) near one."""
    for parameter in filter(is_plain_tensor, module.parameters()):  # others stay the original's
        if parameter.dim() > 1:
            parameter.normal_(std=parameter.shape[-1] ** -0.5, generator=generator)
        else:
            parameter.uniform_(0.5, 1.5, generator=generator)


def is_plain_tensor(parameter: Tensor | None) -> bool:
    """Whether it holds plain numbers only: no packed or quantised weight."""
    return parameter is not None and parameter.is_floating_point() and type(parameter.data) is Tensor


def narrow(settings: dict[str, Any]) -> None:
    """Shorten windows in a config or module so that a few positions show them, and lower caps so that ordinary scores
    show them."""
    for name in CAPS:
        if isinstance(settings.get(name), float) and settings[name] > CAP:
            settings[name] = CAP
    for name in WINDOWS:
        if isinstance(settings.get(name), int) and settings[name] > WINDOW:
            settings[name] = WINDOW


def narrowed_facts(facts: ModelFacts, place: int) -> ModelFacts:
    """A family's facts of one layer, as if it were the only one, with window and cap from `narrow`."""
    layers, needs, block = facts.per_layer[place : place + 1], facts.attention, facts.block
    assert block is not None
    return replace(
        facts,
        per_layer=tuple(replace(layer, window=min(layer.window, WINDOW)) for layer in layers),
        attention=replace(needs, softcap=None if needs.softcap is None else min(needs.softcap, CAP)),
        block=replace(block, rotations=block.rotations[place : place + 1]),
    )


def _copied(module: nn.Module, config: Any, known: dict[int, nn.Module]) -> nn.Module:
    """The module with new, empty plain parameters, also in its submodules, and buffers in float32."""
    if id(module) in known:
        return known[id(module)]
    twin = known[id(module)] = copy.copy(module)
    if isinstance(twin, Float8Linear):  # its scales depend on the batch, which the two layouts fill differently
        setattr(twin, "__class__", nn.Linear)  # noqa: B010 - to mypy a class stays what it is
    own = twin.__dict__
    own["training"] = False
    narrow(own)
    if config is not None and "config" in own:
        own["config"] = config
    own["_parameters"] = {
        name: nn.Parameter(torch.empty(p.shape, dtype=torch.float32, device=p.device), requires_grad=p.requires_grad)
        if p is not None and is_plain_tensor(p)
        else p
        for name, p in module._parameters.items()
    }
    own["_buffers"] = {
        name: buffer.float() if buffer is not None and buffer.is_floating_point() else buffer
        for name, buffer in module._buffers.items()
    }
    own["_modules"] = {
        name: None if inner is None else _copied(inner, config, known) for name, inner in module._modules.items()
    }
    return twin
