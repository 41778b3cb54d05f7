"""Rotary angles that depend on the length of a sequence: each sequence gets the same angles as alone.

For sequences longer than the model's positions, `dynamic` scaling raises the base with the length, and `longrope` has
other frequencies. transformers uses the longest row of a call for all rows, and remembers it for later calls. This
module uses the length of each sequence, so neither its row, its micro-batch nor an earlier call changes the angles.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch
from finetooth_kernels.memory import placed
from numpy.typing import NDArray
from torch import Tensor, nn

from finetooth_torch.attention.handing import handed, handed_slices
from finetooth_torch.planning.row_sharing import ANGLES


class ByLength:
    """Mixin that `turn_by_length` adds to a rotary module's class."""


def turn_by_length(body: nn.Module) -> bool:
    """Make the rotary modules of a body use each sequence's own length, if their angles depend on it.

    Returns:
        Whether there are such modules. Others, in code that comes with a model, do not change.
    """
    for module in body.modules():
        if _kinds(module) and hasattr(type(module).forward, "__wrapped__") and not isinstance(module, ByLength):
            module.__class__ = _by_length(type(module))  # type: ignore[arg-type]
    return any(isinstance(module, ByLength) for module in body.modules())


def _kinds(module: nn.Module) -> list[str]:
    """The scalings of a module that depend on the length."""
    kinds = getattr(module, "rope_type", None)
    named = kinds.values() if isinstance(kinds, dict) else [kinds]
    return [kind for kind in named if kind in ANGLES]


@cache
def _by_length(kind: type[nn.Module]) -> type[nn.Module]:
    """A class like `kind` with angles by the length of each sequence."""
    remembering: Callable[..., Any] = kind.forward
    turning = inspect.unwrap(remembering)  # by the module's frequencies, for any positions

    @torch.no_grad()
    def forward(self: Any, x: Tensor, position_ids: Tensor, layer_type: str | None = None) -> Any:
        named = {} if layer_type is None else {"layer_type": layer_type}
        scaling = self.rope_type if layer_type is None else self.rope_type[layer_type]

        def of(length: int, positions: Tensor) -> Any:
            for last in (0, length):  # a sequence of one position restores the angles of a new model
                remembering(self, x, torch.full((1, 1), last, device=positions.device), **named)
            return turning(self, x, positions, **named)

        if scaling not in ANGLES or position_ids.dim() != 2:
            return remembering(self, x, position_ids, **named)
        lengths, same = _lengths(position_ids), _unchanged(self, layer_type)
        last = np.where(lengths > same, same if scaling == "longrope" else lengths - 1, 0)
        different = np.unique(last)
        if len(different) == 1:
            return of(int(different[0]), position_ids)
        flat = position_ids.expand(lengths.shape).flatten()
        cells = [placed(torch.from_numpy(np.flatnonzero(last == length)), flat.device) for length in different]
        parts = [of(int(length), flat[own][None]) for length, own in zip(different, cells, strict=True)]
        back = torch.cat(cells).argsort()

        def together(of_parts: Any) -> Tensor:
            whole: Tensor = torch.cat(of_parts, 1)[0, back]
            return whole.view(*lengths.shape, -1)

        one = isinstance(parts[0], Tensor)  # complex numbers instead of cosines and sines
        return together(parts) if one else tuple(map(together, zip(*parts, strict=True)))

    return type(kind.__name__, (ByLength, kind), {"forward": forward, "__module__": kind.__module__})


def _unchanged(module: Any, layer_type: str | None) -> int:
    """The longest sequence with the angles of a new model."""
    of = module.config.rope_parameters if layer_type is None else module.config.rope_parameters[layer_type]
    kind = module.rope_type if layer_type is None else module.rope_type[layer_type]
    return int(of["original_max_position_embeddings"] if kind == "longrope" else module.original_max_seq_len)


def _lengths(position_ids: Tensor) -> NDArray[np.int64]:
    """(R, W) of the sequence to which each position belongs."""
    rows, slices = handed(), handed_slices()
    if rows is None:
        return np.asarray((position_ids.amax(1, keepdim=True) + 1).expand(position_ids.shape).cpu())
    whole = np.stack([np.repeat(row, row) for row in rows]).astype(np.int64)
    if slices is not None:
        return whole[:, slices.columns(whole.shape[1], torch.device("cpu")).numpy()]
    return whole[:, -position_ids.shape[1] :]  # after cached keys
