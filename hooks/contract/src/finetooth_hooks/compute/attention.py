"""Attention: the layers that an entry supports, and the function that its builder returns.

Attention of one layer is softmax(scale * query key^T) value, where a position sees itself and the positions before it
in its own sequence. An entry of kind `attention` declares the devices, types and shapes that it supports; the plan
picks one for each kind of layer and says why.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

Segments = Literal["none", "mask", "blocks", "lengths"]
"""How the sequences of a row are kept apart: not at all; by a dense mask, with all pairs computed; by a mask in blocks,
without computing empty ones; by the lengths of the sequences."""

LayerKind = Literal["full", "sliding"]
"""Kinds of layers: a position sees everything before it, or a window."""

Lengths = tuple[tuple[int, ...], ...]
"""For each row the lengths of its sequences, in order; padding is a separate sequence."""


@dataclass(frozen=True, kw_only=True)
class AttentionServes:
    """What an attention can compute.

    Attributes:
        devices: types of devices, by the framework's names: `cpu`, `cuda`, `mps`.
        architectures: patterns such as `sm_9*`, one of which must match the device's architecture; empty: all. A device
            of unknown architecture is accepted.
        precisions: of queries, keys and values: `fp64`, `fp32`, `bf16`, `fp16`.
        largest_head: largest number of elements of a head; None: no limit.
        heads_on: the same on architectures that match a pattern, where it is another.
        head_multiple: heads have a multiple of this many elements.
        segments: how the sequences of a row are kept apart.
        window: whether a position may see only a sliding window.
        softcap: scores may be capped, `cap * tanh(score / cap)`.
        sinks: a learned score per head may join the softmax, without a value.
        grouped: keys and values may have fewer heads than queries.
        chunks: a position may see only its own chunk; and any other pattern of the model's own masks.
        dropout: weights may be dropped, by `torch.nn.functional.dropout`, which the backend keys by example. A kernel
            with its own random numbers cannot declare this.
        backward: it has gradients.
        fused: scores are never stored whole: masked pairs are skipped, and gradients recompute the scores. The plan
            counts operations accordingly.
        packages: distributions that it needs, `flash-attn` or `torch>=2.10`.
    """

    devices: frozenset[str]
    architectures: tuple[str, ...] = ()
    precisions: frozenset[str] = frozenset({"fp32", "bf16", "fp16"})
    largest_head: int | None = None
    heads_on: Mapping[str, int] = field(default_factory=dict)
    head_multiple: int = 1
    segments: Segments = "lengths"
    window: bool = False
    softcap: bool = False
    sinks: bool = False
    grouped: bool = True
    chunks: bool = False
    dropout: bool = False
    backward: bool = True
    fused: bool = True
    packages: tuple[str, ...] = ()


@dataclass(frozen=True)
class AttentionNeeds:
    """What a model's layers need of attention besides products and a softmax; a part of the family's facts.

    Attributes:
        softcap: largest score, which `cap * tanh(score / cap)` approaches; None: scores are not capped.
        sinks: layers have a learned score per head that joins the softmax.
    """

    softcap: float | None = None
    sinks: bool = False


class Attention(Protocol):
    """Computes attention; what a builder of the kind `attention` returns."""

    def __call__(
        self, query: Any, key: Any, value: Any, *, scale: float, lengths: Lengths, causal: bool, window: int | None,
        softcap: float | None, sinks: Any | None,
    ) -> Any:  # fmt: skip
        """Attention of some rows. It is called in a layer's forward pass; its arguments may have any strides.

        Args:
            query: (rows, heads, positions, head size).
            key: (rows, key-value heads, keys, head size). With more keys than positions, keys come from a cache, and
                the queries are of the last positions. Query head h reads key-value head h // (heads / key-value heads).
            value: (rows, key-value heads, keys, value size).
            scale: factor on the products of queries and keys.
            lengths: of the sequences of each row, with the number of keys as their sum; plain integers, so the device
                need not be read. A position sees only its own sequence.
            causal: a position sees itself and earlier ones; False: its whole sequence.
            window: number of positions that a position sees, including itself; None: all.
            softcap: scores become `softcap * tanh(score / softcap)` before the softmax; None: without.
            sinks: (heads,) scores that join the softmax of each position, without a value; None: without.

        Returns:
            (rows, heads, positions, value size), of the query's type.
        """
        ...
