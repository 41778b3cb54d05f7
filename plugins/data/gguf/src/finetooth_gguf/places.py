"""Where the numbers of a GGUF file's tensors are in a folder in transformers' layout."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from finetooth_modelfiles.gguf.architectures import ARCHITECTURES, FREQUENCIES, expert_of, tensor_name, written_change
from finetooth_modelfiles.gguf.configs import frequency_factors
from finetooth_modelfiles.gguf.layouts import Architecture, Change, Floats


@dataclass(frozen=True)
class Place:
    """Where the numbers of a tensor of the file are in the folder.

    Attributes:
        parts: file and name there; of a stack, those of each expert in their order.
        shape: in the GGUF file, the experts first.
        numbers: of a tensor that the folder does not have.
        own: shape of the parameter in the folder, and what makes the tensor's numbers of its, where they differ.
    """

    parts: tuple[tuple[Path, str], ...]
    shape: tuple[int, ...]
    numbers: Floats | None = None
    own: tuple[tuple[int, ...], Callable[[Floats], Floats]] | None = None


def read_tensor(place: Place) -> Floats:
    """A tensor of the folder, in float32."""
    import torch
    from safetensors import safe_open

    if place.numbers is not None:
        return place.numbers
    shape, made = place.own or (place.shape, None)
    numbers = np.empty((len(place.parts), int(np.prod(shape)) // len(place.parts)), np.float32)
    with ExitStack() as opened:
        files = {file: opened.enter_context(safe_open(file, framework="pt")) for file, _ in place.parts}
        for row, (file, name) in zip(numbers, place.parts, strict=True):
            row[:] = files[file].get_tensor(name).to(torch.float32).numpy().reshape(-1)
    return made(numbers.reshape(shape)) if made else numbers.reshape(shape)


def places(weights: Path) -> dict[str, Place]:
    """Of each tensor that a GGUF file of the folder has, where its numbers are."""
    return places_of(weights, json.loads((weights / "config.json").read_text(encoding="utf-8")))


def places_of(weights: Path, config: Mapping[str, Any]) -> dict[str, Place]:
    """Of each tensor of the GGUF file, where its numbers are.

    Raises:
        UserError: a tensor of the folder has no name in a GGUF file.
    """
    from safetensors import safe_open

    architecture, layers = layout_of(config), int(config["num_hidden_layers"])
    parts: dict[str, list[tuple[int, Path, str]]] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    changed: dict[str, Place] = {}
    for file in sorted(weights.glob("*.safetensors")):
        with safe_open(file, framework="pt") as opened:
            for name in list(opened.keys()):
                if name == "lm_head.weight" and config.get("tie_word_embeddings"):
                    continue
                ahead = re.match(r"model\.layers\.(\d+)\.", name) if architecture.ahead else None
                if ahead and int(ahead[1]) >= layers:
                    continue
                if stated_key(name, architecture):
                    continue
                if written := written_change(name, architecture):
                    changed |= _changed(written, opened.get_slice(name).get_shape(), (file, name), config)
                    continue
                tensor = tensor_name(name, architecture)
                parts.setdefault(tensor, []).append((expert_of(name), file, name))
                shapes[tensor] = tuple(opened.get_slice(name).get_shape())
    shapes |= {tensor: shape[1:] for tensor, shape in shapes.items() if tensor.endswith(architecture.one_row)}
    placed = {tensor: _place(tensor, sorted(parts[tensor]), shapes[tensor]) for tensor in parts} | changed
    if (rope := rope_of(config)).get("rope_type") == "llama3":
        factors = frequency_factors(rope, head_width(config))
        placed[FREQUENCIES] = Place((), factors.shape, factors)
    return placed


def stated_numbers(weights: Path, architecture: Architecture) -> dict[str, list[float]]:
    """Metadata of a file about the folder's weights, by key: a number for each layer."""
    from safetensors import safe_open

    numbers: dict[str, dict[int, float]] = {}
    for file in sorted(weights.glob("*.safetensors")) if architecture.stated_weights else ():
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118 - it is not a mapping
                if key := stated_key(name, architecture):
                    numbers.setdefault(key, {})[int(name.split(".")[2])] = float(opened.get_tensor(name).float())
    return {key: [of[layer] for layer in sorted(of)] for key, of in numbers.items()}


def stated_key(name: str, architecture: Architecture) -> str:
    """The key of a parameter of the folder that a file states; empty: it states none."""
    inner = name.split(".", 3)[-1]
    return architecture.stated_weights[inner][0] if inner in architecture.stated_weights else ""


def _place(tensor: str, parts: list[tuple[int, Path, str]], shape: tuple[int, ...]) -> Place:
    whole = (len(parts), *shape) if "_exps." in tensor and len(shape) == 2 else shape  # of single ones
    return Place(tuple((file, name) for _, file, name in parts), whole)


def _changed(
    written: tuple[Change, str], shape: Sequence[int], part: tuple[Path, str], config: Mapping[str, Any]
) -> dict[str, Place]:
    """Places of the tensors that a parameter becomes."""
    (change, block), own = written, tuple(shape)

    def tensor_of(number: int) -> Callable[[Floats], Floats]:
        return lambda numbers: change.written(numbers, config)[number]

    shapes = change.shapes_written(own, config)
    return {
        f"{block}{tensor}": Place((part,), made, own=(own, tensor_of(number)))
        for number, (tensor, made) in enumerate(zip(change.tensors, shapes, strict=True))
    }


def layout_of(config: Mapping[str, Any]) -> Architecture:
    """How a model of a type that can be written is laid out in a file."""
    kind, experts = config["model_type"], bool(config.get("num_local_experts"))
    layouts = [one for one in ARCHITECTURES.values() if kind in (one.model_type, *one.written)]
    return next((one for one in layouts if one.mixture == experts), layouts[0])


def rope_of(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The rotary embedding of layers that attend to everything."""
    stated: Mapping[str, Any] = config.get("rope_parameters") or config.get("rope_scaling") or {}
    return {"rope_theta": config.get("rope_theta", 10000.0), **stated.get("full_attention", stated)}


def head_width(config: Mapping[str, Any]) -> int:
    """Of an attention head."""
    return int(config.get("head_dim") or int(config["hidden_size"]) // int(config["num_attention_heads"]))
