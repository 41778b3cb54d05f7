"""Reading a GGUF file: its metadata and its table of tensors, without touching the tensor data.

Layout (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md): magic `GGUF`, version, tensor count, metadata count,
the metadata as (key, type, value), the tensor table as (name, dimensions, type, offset), padding, tensor data. All
little-endian. The gguf package's own reader keeps a NumPy view for each of the 98,000 strings of a vocabulary and its
merges, which takes seconds; this one decodes them as it goes, in a tenth of that.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from finetooth_hooks.errors import RecipeError
from finetooth_toolbox.files.missing import no_such_file

from finetooth_modelfiles.gguf.package import GGML_QUANT_SIZES, GGMLQuantizationType

MAGIC = b"GGUF"
VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32

# value types of the metadata: struct codes of the fixed-size ones; strings and arrays are handled apart
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9


@dataclass(frozen=True)
class TensorEntry:
    """One line of the tensor table.

    Attributes:
        name: as the file spells it, `blk.0.attn_q.weight`.
        shape: in row-major order (the file states the dimensions the other way round).
        ggml_type: how the values are stored.
        start: byte offset of the data in the file.
        size: bytes of data.
    """

    name: str
    shape: tuple[int, ...]
    ggml_type: GGMLQuantizationType
    start: int
    size: int


@dataclass(frozen=True)
class Container:
    """A GGUF file's metadata and tensor table.

    Attributes:
        path: the file.
        metadata: values by key; arrays are lists.
        tensors: by name, in the order of the file.
    """

    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, TensorEntry]

    @property
    def architecture(self) -> str:
        """What the file calls its kind of model: `llama`, `qwen2`, ..."""
        return str(self.metadata["general.architecture"])

    def blocks(self, tensor: TensorEntry) -> npt.NDArray[np.uint8]:
        """The stored bytes of a tensor, mapped and not read: uint8 of shape (..., bytes of a row)."""
        block, block_bytes = GGML_QUANT_SIZES[tensor.ggml_type]
        shape = (*tensor.shape[:-1], tensor.shape[-1] // block * block_bytes)
        mapped = np.memmap(self.path, mode="r", dtype=np.uint8, offset=tensor.start, shape=shape)
        return mapped.view(np.ndarray)  # slicing a memmap, as dequantising does 200,000 times, costs thrice as much


def read(path: Path) -> Container:
    """Read the metadata and the tensor table.

    Raises:
        RecipeError: the file is missing, empty, not GGUF, of an unknown version, or shorter than its tensor table says.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _parse(path, data)
    except FileNotFoundError:
        problem, action = no_such_file(path)
        raise RecipeError("model", problem, action=action) from None
    except (OSError, ValueError) as error:  # a folder, no permission; an empty file cannot be mapped (ValueError)
        reason = "the file is empty" if isinstance(error, ValueError) else error.strerror
        raise RecipeError(
            "model", f"{path} cannot be read: {reason}", action="check the file, or fetch it again"
        ) from error


def _parse(path: Path, data: mmap.mmap) -> Container:
    if data[:4] != MAGIC:
        raise RecipeError(
            "model",
            f"{path} is not a GGUF file: it starts with {bytes(data[:4])!r}, not {MAGIC!r}",
            action="give a .gguf file; a folder or a hub id is read by another loader",
        )
    cursor = _Cursor(data, path)
    version, tensor_count, metadata_count = cursor.unpack("<IQQ")
    if version not in VERSIONS:
        raise RecipeError(
            "model",
            f"{path} is GGUF version {version}; versions {' and '.join(map(str, VERSIONS))} can be read",
            action="convert it again with a current converter",
        )
    metadata: dict[str, Any] = {}
    for _ in range(metadata_count):
        key = cursor.string()
        (value_type,) = cursor.unpack("<I")
        metadata[key] = cursor.value(value_type)
    if "general.architecture" not in metadata:
        raise RecipeError("model", f"{path} does not state general.architecture", action="convert it again")
    rows = [cursor.tensor_row() for _ in range(tensor_count)]
    alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    if not isinstance(alignment, int) or alignment < 1:
        raise RecipeError("model", f"{path} states an alignment of {alignment!r}", action="fetch or convert it again")
    data_start = -(-cursor.position // alignment) * alignment
    tensors = {}
    for name, shape, type_id, offset in rows:
        entry = _tensor_entry(path, name, shape, type_id, data_start + offset)
        if entry.start + entry.size > len(data):
            raise _truncated_error(path, len(data), f"tensor {name} ends at byte {entry.start + entry.size:,}")
        tensors[name] = entry
    return Container(path, metadata, tensors)


def _tensor_entry(path: Path, name: str, shape: tuple[int, ...], type_id: int, start: int) -> TensorEntry:
    try:
        ggml_type = GGMLQuantizationType(type_id)
    except ValueError:
        raise RecipeError(
            "model",
            f"{path} stores tensor {name} as type {type_id}, which the installed gguf package does not know",
            action="upgrade gguf, or take another quantisation of the model",
        ) from None
    block, block_bytes = GGML_QUANT_SIZES[ggml_type]
    if not shape or shape[-1] % block:
        raise RecipeError(
            "model",
            f"{path} states shape {shape} for tensor {name}, which {ggml_type.name} blocks of {block} cannot fill",
            action="fetch or convert it again",
        )
    return TensorEntry(name, shape, ggml_type, start, prod(shape) // block * block_bytes)


def _truncated_error(path: Path, size: int, why: str) -> RecipeError:
    return RecipeError(
        "model", f"{path} is truncated or damaged: it has {size:,} bytes, but {why}", action="fetch the file again"
    )


class _Cursor:
    """A position in the mapped file, past the magic."""

    def __init__(self, data: mmap.mmap, path: Path) -> None:
        self.data = data
        self.path = path
        self.position = len(MAGIC)

    def _advance(self, size: int) -> int:
        start, end = self.position, self.position + size
        if end > len(self.data):
            raise _truncated_error(self.path, len(self.data), f"its header ends at byte {end:,}")
        self.position = end
        return start

    def unpack(self, code: str) -> tuple[Any, ...]:
        return struct.unpack_from(code, self.data, self._advance(struct.calcsize(code)))

    def string(self) -> str:
        (length,) = self.unpack("<Q")
        start = self._advance(length)
        return self._text(self.data[start : start + length])

    def _text(self, raw: bytes) -> str:
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            raise RecipeError(
                "model",
                f"{self.path} is damaged: its header holds {raw[:40]!r}, which is not UTF-8",
                action="fetch the file again",
            ) from None

    def strings(self, count: int) -> list[str]:
        """`string` `count` times, flat: a vocabulary and its merges are 100,000 of them."""
        data, position, size = self.data, self.position, len(self.data)
        length_at = struct.Struct("<Q").unpack_from
        values = []
        for _ in range(count):
            start = position + 8
            end = start + length_at(data, position)[0] if start <= size else start
            if end > size:
                raise _truncated_error(self.path, size, f"its header ends at byte {end:,}")
            values.append(self._text(data[start:end]))
            position = end
        self.position = position
        return values

    def value(self, value_type: int) -> Any:
        if code := _SCALARS.get(value_type):
            return self.unpack(f"<{code}")[0]
        if value_type == _STRING:
            return self.string()
        if value_type != _ARRAY:
            raise RecipeError(
                "model", f"{self.path} holds metadata of unknown type {value_type}", action="fetch it again"
            )
        element_type, count = self.unpack("<IQ")
        if code := _SCALARS.get(element_type):
            start = self._advance(struct.calcsize(f"<{code}") * count)
            return list(struct.unpack_from(f"<{count}{code}", self.data, start))
        if element_type == _STRING:
            return self.strings(count)
        return [self.value(element_type) for _ in range(count)]

    def tensor_row(self) -> tuple[str, tuple[int, ...], int, int]:
        name = self.string()
        (dimensions,) = self.unpack("<I")
        shape = tuple(reversed(self.unpack(f"<{dimensions}Q"))) if dimensions <= 8 else ()
        type_id, offset = self.unpack("<IQ")
        return name, shape, type_id, offset
