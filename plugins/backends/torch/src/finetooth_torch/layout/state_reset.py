"""Resets the state of recurrent layers where a row's next segment begins.

Linear attention, state-space layers and short convolutions of transformers call functions of their module that read
along a row: a causal convolution, a chunked scan. This module replaces those functions by ones that put each segment
into a separate row and the results back, so that a segment begins with a zero state and no convolution crosses a
border. Projections, gates and norms do not change. Without segments (sampling, rows of one segment), the functions do
the same as before.

Segments of similar length are computed together: their widths are powers of 2, at least 64, which is a chunk.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from functools import cached_property, wraps
from typing import Any

import numpy as np
import torch
from finetooth_hooks.compute.attention import Lengths
from finetooth_kernels.memory import placed
from torch import Tensor, nn

from finetooth_torch.planning.row_sharing import scanned

SCANS: Mapping[str, int] = {
    "causal_conv1d_fn": 2, "torch_chunk_gated_delta_rule": 1, "chunk_kimi_delta_attention": 1,
    "mamba2_chunk_scan": 1, "mamba_selective_scan": 2,
}  # fmt: skip
"""Functions that read along a row, and the row's dimension of their tensors."""
FUSED = ("mamba2_split_conv1d_scan_combined", "mamba_inner_fn")
"""Convolution, scan and projection as one kernel; if it returns None, the layer calls them separately."""
BORDERS = ("cu_seqlens", "cu_seq_lens_q", "cu_seq_lens_k", "seq_idx")
"""Arguments that tell kernels where segments begin; unused if each has a separate row."""


class Segments:
    """The places of segments in rows (R, W), and in separate rows.

    Args:
        lengths: of each row's segments, padding included.
        device: of the rows.
    """

    def __init__(self, lengths: Lengths, device: torch.device) -> None:
        self.lengths, self.device = lengths, device

    @cached_property
    def places(self) -> tuple[list[Tensor], Tensor]:
        """For each group, (N, T) the positions among R·W that its rows read; and (R·W,) the result for each position.
        Padding of a row reads the last position of its segment."""
        lengths = np.array([length for row in self.lengths for length in row])
        begins, widths = np.cumsum(lengths) - lengths, scanned(lengths)
        groups, back, at = [], np.empty(int(lengths.sum()), dtype=np.int64), 0
        for width in np.unique(widths):
            own, first = lengths[widths == width, None], begins[widths == width, None]
            along = np.arange(own.max())
            read = first + np.minimum(along, own - 1)
            back[read[along < own]] = at + np.flatnonzero(along < own)
            at += read.size
            groups.append(placed(torch.from_numpy(read), self.device))
        return groups, placed(torch.from_numpy(back), self.device)


_SEGMENTS: ContextVar[Segments | None] = ContextVar("segments", default=None)


@contextmanager
def states_reset(segments: Segments | None) -> Iterator[None]:
    """Inside the `with` block, the rows that the model reads have these segments; None: each row is one."""
    token = _SEGMENTS.set(segments)
    try:
        yield
    finally:
        _SEGMENTS.reset(token)


def computed_again() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """For `torch.utils.checkpoint`: a layer that is recomputed in the backward pass has the same segments."""
    return nullcontext(), states_reset(_SEGMENTS.get())


def replace_scans(body: nn.Module) -> None:
    """Make layers of the body reset at segments, if their module in transformers has `SCANS`."""
    names = {kind.__module__ for module in body.modules() for kind in type(module).__mro__}
    for module in [sys.modules[name] for name in names if name in sys.modules]:
        for name in (*SCANS, *FUSED):
            function = vars(module).get(name)
            if function is not None and not hasattr(function, "by_segment"):
                vars(module)[name] = _by_segment(function, SCANS.get(name))


def _by_segment(function: Callable[..., Any], axis: int | None) -> Callable[..., Any]:
    @wraps(function)
    def scan(*given: Any, **named: Any) -> Any:
        segments = _SEGMENTS.get()
        if segments is None:
            return function(*given, **named)
        if axis is None:
            return None
        shape = (len(segments.lengths), sum(segments.lengths[0]))
        groups, back = segments.places
        parts = []
        for place in groups:

            def own(value: Any, place: Tensor = place) -> Any:
                if not isinstance(value, Tensor) or value.dim() < 3 or (value.shape[0], value.shape[axis]) != shape:
                    return value
                return value.movedim(axis, 1).flatten(0, 1)[place].movedim(1, axis)

            some = {name: own(value) for name, value in named.items() if name not in BORDERS}
            result = function(*map(own, given), **some)
            parts.append((result[0] if isinstance(result, tuple) else result).movedim(axis, 1).flatten(0, 1))
        whole = torch.unflatten(torch.cat(parts)[back], 0, shape).movedim(1, axis)
        return (whole, None) if isinstance(result, tuple) else whole

    scan.by_segment = True  # type: ignore[attr-defined]
    return scan
