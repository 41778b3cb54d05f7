"""From the stored blocks of a tensor to its numbers.

A tensor is turned piece by piece: a piece and all that it becomes stay in the cache of a core. Where a model is held
in a narrower precision, the float32 numbers between the file and it never exist as a whole, which for a model of 135
million parameters would be 540 MB to write and to read again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from finetooth_hooks.errors import RecipeError

from finetooth_modelfiles.gguf.architectures import architecture_of, restored_rows, stored_offset
from finetooth_modelfiles.gguf.container import Container
from finetooth_modelfiles.gguf.package import GGML_QUANT_SIZES, GGMLQuantizationType, dequantize

PIECE = 1 << 15
"""Numbers dequantised at once, 128 KiB in float32. Beyond it NumPy asks the system for memory for each intermediate
result, and torch starts threads to round a piece, when there are threads enough with several tensors at once."""
Pieces = Iterator[tuple[slice, npt.NDArray[np.float32]]]
"""Places among the numbers of a tensor, in their order, and what is there."""


def pieces(blocks: npt.NDArray[np.uint8], ggml_type: GGMLQuantizationType) -> Pieces:
    """Numbers of stored blocks, in arrays that can be written to.

    Args:
        blocks: stored bytes; contiguous, of any shape.

    Raises:
        NotImplementedError: the gguf package cannot dequantise this type.
    """
    block, block_bytes = GGML_QUANT_SIZES[ggml_type]
    stored = blocks.reshape(-1, block_bytes)
    count = max(1, PIECE // block)
    for start in range(0, len(stored), count):
        piece = stored[start : start + count]
        # all in one row, since the gguf package turns few rows at a time
        values = dequantize(piece.reshape(1, -1), ggml_type).reshape(-1)
        if not values.flags.writeable:  # float32 is still a view of the file, and torch takes none that is read-only
            values = values.copy()
        yield slice(start * block, start * block + len(values)), values


def tensor_pieces(container: Container, name: str, config: Mapping[str, Any]) -> Pieces:
    """Numbers of a tensor of a file as transformers has them: its rows in their order, and without what a file adds.

    Args:
        config: of the file, see `config_values`.

    Raises:
        RecipeError: the tensor is stored in a way that cannot be read.
    """
    entry = container.tensors[name]
    rows = restored_rows(container, name, container.blocks(entry), config)
    offset = stored_offset(architecture_of(container), name)
    try:
        for place, values in pieces(rows, entry.ggml_type):
            yield place, values - np.float32(offset) if offset else values
    except NotImplementedError:
        raise RecipeError(
            "model",
            f"{container.path} stores {name} as {entry.ggml_type.name}, which cannot be dequantised",
            action="take another quantisation of the model",
        ) from None


def tensor_numbers(container: Container, name: str, config: Mapping[str, Any]) -> npt.NDArray[np.float32]:
    """The numbers of a tensor as one array of its shape."""
    numbers = np.empty(container.tensors[name].shape, np.float32)
    for place, values in tensor_pieces(container, name, config):
        numbers.reshape(-1)[place] = values
    return numbers


def parameter_numbers(container: Container, parts: Sequence[str], config: Mapping[str, Any]) -> npt.NDArray[np.float32]:
    """Numbers of a parameter that a file holds as it stands, or otherwise (`Change`), or states.

    Args:
        parts: see `parameter_names`.
    """
    if stated := architecture_of(container).stated_weight(parts[0]):
        key, layer, shape = stated
        return np.full(shape, container.metadata[key][layer], np.float32)
    numbers = [tensor_numbers(container, part, config) for part in parts]
    change = architecture_of(container).change_of(parts[0])
    return change.read(numbers, config) if change and change.read else numbers[0]
