"""safetensors files, read without a framework: the header, and the bits of each tensor.

The format: eight bytes with the length of the header (little-endian), the header in JSON (by name `dtype`, `shape` and
`data_offsets` into what follows; `__metadata__` is text by name), and the tensors, one after another without a gap.
https://github.com/huggingface/safetensors
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from finetooth_toolbox.text.strict_json import JsonProblem, decode
from numpy.typing import NDArray

LONGEST_HEADER = 100 * 2**20
"""Bytes; the format's own bound is 100 MB."""
_CHUNK = 2**23  # bytes looked at at once

BITS: Mapping[str, int] = MappingProxyType(
    {
        **{"BOOL": 8, "U8": 8, "I8": 8, "U16": 16, "I16": 16, "U32": 32, "I32": 32, "U64": 64, "I64": 64},
        **{"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8},
        **{"F8_E5M2FNUZ": 8, "F8_E4M3FNUZ": 8, "F16": 16, "BF16": 16, "F32": 32, "F64": 64, "C64": 64},
    }
)
"""Bits of one element, by the format's name of its type."""

WHOLE = frozenset({"BOOL", "U8", "I8", "U16", "I16", "U32", "I32", "U64", "I64", "F4", "F6_E2M3", "F6_E3M2"})
"""Types that hold no infinity and no NaN."""

_EXPONENT: Mapping[str, tuple[type[Any], int]] = MappingProxyType(
    {
        "F16": (np.uint16, 0x7C00),
        "BF16": (np.uint16, 0x7F80),
        "F32": (np.uint32, 0x7F800000),
        "C64": (np.uint32, 0x7F800000),
        "F64": (np.uint64, 0x7FF0000000000000),
        "F8_E5M2": (np.uint8, 0x7C),
    }
)
"""Unsigned type of the same width, and its exponent bits: all of them set is an infinity or a NaN."""

_NANS: Mapping[str, tuple[int, ...]] = MappingProxyType(
    {"F8_E4M3": (0x7F, 0xFF), "F8_E8M0": (0xFF,), "F8_E5M2FNUZ": (0x80,), "F8_E4M3FNUZ": (0x80,)}
)
"""Types without infinities: the bytes that are NaN."""


class TensorProblem(ValueError):
    """What is wrong with a file of tensors, in one line."""


@dataclass(frozen=True)
class Tensor:
    """A tensor of a file.

    Attributes:
        name: its key.
        dtype: the format's name of its type, `BF16`.
        shape: its shape.
        start, end: bytes from the beginning of the file.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


def read_header(path: Path) -> list[Tensor]:
    """The tensors of a file in their order, each checked to lie where it can.

    Raises:
        TensorProblem: the header is not sane: too long, no JSON, an unknown type, a size that is not that of the shape,
            a gap, an overlap, or a file that ends earlier or later than its tensors.
        OSError: the file cannot be read.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        begin = file.read(8)
        length = int.from_bytes(begin, "little")
        if len(begin) < 8 or length > LONGEST_HEADER or 8 + length > size:
            raise TensorProblem("the length of its header cannot be")
        try:
            header = decode(file.read(length).decode("utf-8"))
        except (JsonProblem, UnicodeDecodeError) as error:
            raise TensorProblem(f"its header is not JSON: {error}") from error
    if not isinstance(header, Mapping):
        raise TensorProblem("its header is not a JSON object")
    first = 8 + length
    tensors = [_tensor(name, entry, first) for name, entry in header.items() if name != "__metadata__"]
    tensors.sort(key=lambda tensor: (tensor.start, tensor.end))
    for tensor in tensors:
        if tensor.start != first:
            raise TensorProblem(f"{tensor.name} does not begin where what lies before it ends")
        first = tensor.end
    if first != size:
        raise TensorProblem(f"it has {size} bytes, its tensors end at {first}")
    return tensors


def _tensor(name: str, entry: Any, first: int) -> Tensor:
    try:
        dtype, shape, (start, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
        sizes = [*shape, start, end]
        if not all(isinstance(value, int) and not isinstance(value, bool) and value >= 0 for value in sizes):
            raise ValueError
        bits = BITS.get(dtype)
    except (KeyError, TypeError, ValueError) as error:
        raise TensorProblem(f"its header does not say type, shape and place of {name}") from error
    if bits is None:
        raise TensorProblem(f"{name} has the unknown type {dtype}")
    if (end - start) * 8 != math.prod(shape) * bits:
        raise TensorProblem(f"{name} takes {end - start} bytes, which does not fit {shape} of {dtype}")

    return Tensor(name, dtype, tuple(shape), first + start, first + end)


def not_finite(path: Path, tensor: Tensor) -> int:
    """How many elements are NaN or infinite (of complex ones: how many halves).

    Raises:
        OSError: the file cannot be read, or ends early.
    """
    if tensor.dtype in WHOLE:
        return 0
    return sum(int(np.count_nonzero(_odd(chunk, tensor.dtype))) for chunk in _chunks(path, tensor))


def _odd(raw: NDArray[np.uint8], dtype: str) -> NDArray[np.bool_]:
    if dtype in _NANS:
        return np.isin(raw, np.array(_NANS[dtype], dtype=np.uint8))
    unsigned, exponent = _EXPONENT[dtype]
    values = raw.view(np.dtype(unsigned).newbyteorder("<"))
    odd: NDArray[np.bool_] = (values & unsigned(exponent)) == unsigned(exponent)
    return odd


def _chunks(path: Path, tensor: Tensor) -> Iterator[NDArray[np.uint8]]:
    with path.open("rb") as file:
        file.seek(tensor.start)
        left = tensor.end - tensor.start
        while left > 0:
            content = file.read(min(_CHUNK, left))
            if len(content) < min(_CHUNK, left):
                raise OSError(f"{path} ends early")
            left -= len(content)
            yield np.frombuffer(content, dtype=np.uint8)
