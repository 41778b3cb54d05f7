"""Converts arrays between NumPy and MLX, and names parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten, tree_unflatten
from numpy.typing import NDArray

DTYPES = {"fp32": mx.float32, "bf16": mx.bfloat16, "fp16": mx.float16}
KINDS = {"f": np.float32, "i": np.int32, "u": np.uint32, "b": np.bool_}
"""MLX's dtype for each kind of NumPy's dtypes: MLX computes with 32 bits."""

NamedArrays = dict[str, mx.array]
"""Arrays by parameter name."""


def to_mx(values: NDArray[Any]) -> mx.array:
    """An array of MLX with 32 bits per number."""
    array = np.asarray(values)
    return mx.array(array.astype(KINDS[array.dtype.kind]))


def named(tree: Any) -> NamedArrays:
    """The arrays of a nested tree by their paths."""
    return dict(tree_flatten(tree))


def nested(arrays: Mapping[str, mx.array]) -> Any:
    """The nested tree of these arrays; the inverse of `named`."""
    return tree_unflatten(list(arrays.items())) if arrays else {}
