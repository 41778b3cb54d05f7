"""From the stored blocks of a tensor to its numbers in the precision the model is held in.

A tensor is turned piece by piece: a piece and all that it becomes stay in the cache of a core, and the float32 numbers
between the file and a narrower precision never exist as a whole, which for a model of 135 million parameters would be
540 MB to write and to read again.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from finetooth_gguf.package import GGML_QUANT_SIZES, GGMLQuantizationType, dequantize

PIECE = 1 << 15
"""Numbers dequantised at once, 128 KiB in float32. Beyond it NumPy asks the system for memory for each intermediate
result, and torch starts threads to round a piece, when there are threads enough with several tensors at once."""


def dequantise_into(numbers: torch.Tensor, blocks: npt.NDArray[np.uint8], ggml_type: GGMLQuantizationType) -> None:
    """Fill `numbers` with those of stored blocks, dequantised in float32 and then rounded to the tensor's precision.

    Args:
        numbers: contiguous, of any shape.
        blocks: stored bytes of as many numbers, in their order; contiguous, of any shape.

    Raises:
        NotImplementedError: the gguf package cannot dequantise this type.
    """
    block, block_bytes = GGML_QUANT_SIZES[ggml_type]
    stored, filled = blocks.reshape(-1, block_bytes), numbers.view(-1, block)
    count = max(1, PIECE // block)
    for start in range(0, len(stored), count):
        piece = stored[start : start + count]
        # all in one row, since the gguf package turns few rows at a time
        values = dequantize(piece.reshape(1, -1), ggml_type).reshape(len(piece), block)
        if not values.flags.writeable:  # float32 is still a view of the file, and torch takes none that is read-only
            values = values.copy()
        filled[start : start + count] = torch.from_numpy(values)
