"""Lists the tensors of a folder of safetensors files from their headers.

Layout (https://github.com/huggingface/safetensors): eight bytes of little-endian header length, a JSON header with the
dtype, shape and data offsets of every tensor, the data.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from finetooth_hooks import RecipeError
from finetooth_toolbox.text.strict_json import received

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLED = ("pytorch_model.bin", "pytorch_model.bin.index.json")
BESIDE = (
    *("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"),
    *("added_tokens.json", "vocab.json", "vocab.txt", "merges.txt", "chat_template.json", "chat_template.jinja"),
    *("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json", "tekken.json"),
    *("*.model", "*.tiktoken", "*.py", "additional_chat_templates/*.jinja"),
)
"""Files other than the weights that decide what a model computes and how it reads text, as patterns."""
LARGEST_HEADER = 100_000_000
"""Bytes; the format's own limit."""


@dataclass(frozen=True)
class Checkpoint:
    """The weights of a folder, unread.

    Attributes:
        files: its safetensors files, in the order of their names.
        parameters: elements of all tensors.
        bytes: on disk.
        experts: elements of the matrices of routed experts, whether a file holds them one by one or as one tensor.
    """

    files: tuple[Path, ...]
    parameters: int
    bytes: int
    experts: int = 0


@dataclass(frozen=True)
class Place:
    """The place of a tensor.

    Attributes:
        dtype: by the format's name, `BF16`.
        start: byte in the file.
        size: bytes.
    """

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    size: int


def places(folder: Path) -> dict[str, Place]:
    """The tensors of a folder by name.

    Raises:
        RecipeError: see `read`.
    """
    by_name = {}
    for file in _files(folder):
        header = _header(file)
        with file.open("rb") as opened:
            data = 8 + struct.unpack("<Q", opened.read(8))[0]
        for name, tensor in header.items():
            if name != "__metadata__":
                begin, end = tensor["data_offsets"]
                by_name[name] = Place(file, tensor["dtype"], tuple(tensor["shape"]), data + begin, end - begin)
    return by_name


def read(folder: Path) -> Checkpoint:
    """Read the headers of a folder's weights.

    Raises:
        RecipeError: the folder has no weights, a file is missing or truncated, or they are pickled.
    """
    parameters = size = experts = 0
    files = _files(folder)
    for file in files:
        header = _header(file)
        tensors = {name: value for name, value in header.items() if name != "__metadata__"}
        parameters += sum(prod(tensor["shape"]) for tensor in tensors.values())
        experts += sum(prod(tensor["shape"]) for name, tensor in tensors.items() if _of_experts(name, tensor["shape"]))
        size += file.stat().st_size
    return Checkpoint(files, parameters, size, experts)


def contents(folder: Path) -> dict[str, Path]:
    """The files of a folder that decide what its model computes and how it reads text, by name.

    Raises:
        RecipeError: see `read`.
    """
    beside = (path for pattern in BESIDE for path in folder.glob(pattern) if path.is_file())
    index = (folder / INDEX,) if (folder / INDEX).is_file() else ()
    return {path.relative_to(folder).as_posix(): path.absolute() for path in (*_files(folder), *index, *beside)}


def _of_experts(name: str, shape: list[int]) -> bool:
    return ".experts." in name and len(shape) >= 2 and not name.endswith("bias")


def _files(folder: Path) -> tuple[Path, ...]:
    if (folder / INDEX).is_file():
        try:
            names = sorted({str(name) for name in received((folder / INDEX).read_bytes())["weight_map"].values()})
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise RecipeError(
                "model", f"{folder / INDEX} is not an index of weights", action="fetch it again"
            ) from error
        if out := [name for name in names if Path(name).is_absolute() or ".." in Path(name).parts]:
            problem = f"{folder / INDEX} names {out[0]!r:.100}, which is not a file of its folder"
            raise RecipeError("model", problem, action="fetch it again")
        files = tuple(folder / name for name in names)
        if lost := [file.name for file in files if not file.is_file()]:
            raise RecipeError(
                "model",
                f"{len(lost)} of {len(files)} weight files are missing: {', '.join(lost[:3])}",
                action="fetch them",
            )
        return files
    if (folder / SINGLE).is_file():
        return (folder / SINGLE,)
    if any((folder / name).is_file() for name in PICKLED):
        raise RecipeError(
            "model",
            f"{folder} holds its weights only as pickle files, which can run code when they are read",
            action="convert them to safetensors: load with transformers, then save_pretrained",
        )
    raise RecipeError("model", f"{folder} has a config.json but no {SINGLE}", action="check that the folder is whole")


def _header(file: Path) -> dict[str, Any]:
    size = file.stat().st_size
    with file.open("rb") as opened:
        start = opened.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
        if length > min(size - 8, LARGEST_HEADER):
            raise RecipeError("model", f"{file} is cut off or no safetensors file", action="fetch it again")
        try:
            header = received(opened.read(length))
            end = max(
                (tensor["data_offsets"][1] for name, tensor in header.items() if name != "__metadata__"), default=0
            )
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise RecipeError("model", f"{file} is not a safetensors file", action="fetch it again") from error
    if 8 + length + end != size:
        raise RecipeError(
            "model", f"{file} has {size:,} bytes where its header says {8 + length + end:,}", action="fetch it again"
        )
    return dict(header)
