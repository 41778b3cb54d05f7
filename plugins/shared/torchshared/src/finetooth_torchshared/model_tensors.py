"""Models that are read tensor by tensor: written in transformers' layout, or as a quantizer stores them. What is held
is a tensor, whatever the size of the model."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import torch
from finetooth_hooks.errors import EngineError
from finetooth_hooks.protocols import ModelInfo, ModelTensors, Quantizer
from finetooth_toolbox.cli.working import show_share
from torch import Tensor, nn

from finetooth_torchshared.kept_in_fp32 import kept_in_fp32
from finetooth_torchshared.quantised import PRECISIONS, DequantisingLinear, stored_linear, stores_apart
from finetooth_torchshared.stored_experts import as_linear, weights_of_experts
from finetooth_torchshared.whole_weights import export_weights, quiet_library

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
KINDS = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
"""Names of types in a safetensors file."""
LARGEST = 5 * 10**9
"""Bytes of tensors in a file, unless one alone is larger."""
DtypeAndShape: TypeAlias = tuple[torch.dtype, tuple[int, ...]]
"""What a header says of a tensor: type and shape."""


def as_stored(tensors: ModelTensors, quantizer: Quantizer) -> ModelTensors | None:
    """The same with each weight that a quantizer takes stored by it and read back, in fp32: linear weights but for the
    head's, and those of experts held as one. None where the model must be there as a whole, or what is stored cannot
    be read as numbers.
    """
    if not stores_apart(quantizer):
        return None
    probe: Any = quantizer.linear(nn.Linear(256, 8, bias=False), device="cpu")
    if not isinstance(probe, DequantisingLinear):
        return None
    head = tensors.model.get_output_embeddings()

    def stored(name: str, numbers: Tensor) -> Tensor:
        path, _, last = name.rpartition(".")
        module = tensors.model.get_submodule(path)
        if last == "weight" and isinstance(module, nn.Linear) and module is not head:
            if not quantizer.takes(path, (module.out_features, module.in_features)):
                return numbers
            plain = nn.Linear(module.in_features, module.out_features, bias=False, device="meta")
            plain.weight = nn.Parameter(numbers, requires_grad=False)
        elif last in weights_of_experts(module):
            path = name
            if not quantizer.takes(name, (numbers.shape[0] * numbers.shape[1], numbers.shape[2])):
                return numbers
            plain = as_linear(numbers)
        else:
            return numbers
        made: Any = stored_linear(path, plain, quantizer, "cpu")
        read: Tensor = made.dequantised(torch.float32)
        return read.reshape(numbers.shape)

    return replace(tensors, read=lambda name: stored(name, tensors.read(name)))


def write_model(loader: Any, reference: str, folder: Path, *, precision: str) -> None:
    """Write a model with its tokenizer in transformers' layout: tensor by tensor where its loader can give it so, else
    from host memory.

    Args:
        loader: a `finetooth_hooks.protocols.Loader`.
    """
    by_tensor = "tensors" in loader.capabilities
    tensors = loader.tensors(reference, framework="torch", precision="fp32") if by_tensor else None
    if tensors is None:
        model = loader.load(reference, framework="torch", precision=precision, device="cpu")
        export_weights(model, folder)
    else:
        folder.mkdir(parents=True, exist_ok=True)
        write_model_tensors(tensors, folder, precision)
    loader.tokenizer(reference).save(folder)
    keep_processors(loader.describe(reference), folder)


def keep_processors(info: ModelInfo, folder: Path) -> None:
    """Copy what says how images, sounds and videos are read from the files of a model into a folder made of it."""
    for file in info.files[0].parent.glob("*processor_config.json") if info.files else ():
        shutil.copyfile(file, folder / file.name)


def write_model_tensors(tensors: ModelTensors, folder: Path, precision: str) -> None:
    """Write config and weights in transformers' layout, one tensor in memory: a file for each of the base's, or more
    where those would be larger than `LARGEST`. Names and shapes are those by which transformers saves the model, as
    where files hold experts one by one and the model joins them.

    Args:
        folder: exists.
        precision: of the numbers, but for what the model keeps in fp32.

    Raises:
        EngineError: a tensor is not of the model's shape.
        OSError: a file cannot be written.
    """
    model, dtype = tensors.model, PRECISIONS[precision]
    _know_names(model)
    shapes, stays = model.state_dict(), kept_in_fp32(model, dtype)

    def written(name: str, tensor: Tensor) -> dict[str, Tensor]:
        if tensor.is_floating_point():
            tensor = tensor.to(torch.float32 if name in stays else dtype)
        return _as_saved(model, name, tensor)

    def made(names: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
        for name in names:
            show_share(len(done) / len(tensors.files))
            done.add(name)
            tensor = tensors.read(name)
            if tensor.shape != shapes[name].shape:
                raise EngineError(
                    f"{name} is {tuple(tensor.shape)}, and {tuple(shapes[name].shape)} in its model", action="report it"
                )
            yield from written(name, tensor).items()

    places: dict[str, str] = {}
    total, done = 0, set[str]()
    parts = _parts(tensors.files, {name: written(name, shapes[name]) for name in tensors.files})
    for target, names, header in parts:
        total += write_safetensors(folder / target, header, made(names))
        places |= dict.fromkeys(header, target)
    if len(parts) > 1:
        content = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
        (folder / INDEX).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    config = model.config
    config.dtype, config.architectures = dtype, [type(model).__name__]
    with quiet_library():
        config.save_pretrained(str(folder))
        if model.can_generate():
            model.generation_config.save_pretrained(str(folder))


def _parts(
    files: Mapping[str, str], saved: Mapping[str, Mapping[str, Tensor]]
) -> list[tuple[str, list[str], dict[str, DtypeAndShape]]]:
    """What each file to write holds: its name, the names of the model's tensors, and what its header says of those
    that are written for them.

    Args:
        files: of the base, by tensor of the model.
        saved: without memory, what is written for each.
    """
    parts: list[tuple[list[str], dict[str, DtypeAndShape]]] = []
    for file in sorted(set(files.values())):
        names, header, size = list[str](), dict[str, DtypeAndShape](), 0
        for name in sorted(name for name, place in files.items() if place == file):
            each = {part: (tensor.dtype, tuple(tensor.shape)) for part, tensor in saved[name].items()}
            bytes_ = sum(tensor.nbytes for tensor in saved[name].values())
            if names and size + bytes_ > LARGEST:
                parts.append((names, header))
                names, header, size = [], {}, 0
            names.append(name)
            header |= each
            size += bytes_
        parts.append((names, header))
    targets = sorted(set(files.values()))
    if len(parts) == 1:
        targets = [SINGLE]
    elif len(parts) != len(targets):
        targets = [f"model-{index + 1:05}-of-{len(parts):05}.safetensors" for index in range(len(parts))]
    return [(target, names, header) for target, (names, header) in zip(targets, parts, strict=True)]


def _know_names(model: Any) -> None:
    """Have the model know by which names it is saved, once: transformers would look for them with every tensor."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import PrefixChange

    if getattr(model, "_weight_conversions", None) is None:
        table: Any = get_model_conversion_mapping(model, add_legacy=False)
        model._weight_conversions = [conversion for conversion in table if not isinstance(conversion, PrefixChange)]


def _as_saved(model: Any, name: str, tensor: Tensor) -> dict[str, Tensor]:
    """A tensor of the model as files hold it, which may be several."""
    from transformers.core_model_loading import revert_weight_conversion

    if not model._weight_conversions:
        return {name: tensor}
    saved: dict[str, Tensor] = revert_weight_conversion(model, {name: tensor})
    return saved


def write_safetensors(path: Path, said: Mapping[str, DtypeAndShape], made: Iterable[tuple[str, Tensor]]) -> int:
    """Write a safetensors file, one tensor in memory: the library's own writer takes all of them, and copies each.

    Layout: https://github.com/huggingface/safetensors#format, version 0.8 and before: the header's length in 8 bytes,
    the header, filled with blanks to whole 8 bytes, and the tensors.

    Args:
        said: type and shape of each.
        made: all of them, in any order, of those types and shapes.

    Returns:
        Bytes of all tensors.

    Raises:
        EngineError: they are others.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    # tensors of large elements first, so that each lies at a multiple of its element's size
    begins: dict[str, int] = {}
    end = 0
    for name in sorted(said, key=lambda name: (-said[name][0].itemsize, name)):
        kind, shape = said[name]
        begins[name], end = end, end + math.prod(shape) * kind.itemsize
        header[name] = {"dtype": KINDS[kind], "shape": list(shape), "data_offsets": [begins[name], end]}
    content = json.dumps(header, separators=(",", ":")).encode()
    content += b" " * (-len(content) % 8)
    with path.open("wb") as file:
        file.write(len(content).to_bytes(8, "little"))
        file.write(content)
        for name, tensor in made:
            if name not in begins or (tensor.dtype, tuple(tensor.shape)) != said[name]:
                raise EngineError(f"{name} of {path} is not what its header says", action="report it")
            file.seek(8 + len(content) + begins.pop(name))
            file.write(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    if begins:
        raise EngineError(f"{path} lacks {min(begins)}", action="report it")
    return end
