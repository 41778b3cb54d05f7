"""Attention: the layers that an entry can serve, and the function that its builder returns.

Attention of one layer is softmax(scale * query key^T) value, where a position sees itself and what stands before it in
its own sequence. An entry of kind `attention` declares which devices, types and shapes it serves; the plan picks one
for each kind of layer and says why.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol

Segments = Literal["none", "mask", "blocks", "lengths"]
"""How rows that hold several sequences are kept apart: not at all; by a dense mask, so that all pairs are computed; by
a mask cut into blocks, of which empty ones are not computed; by the lengths of the sequences."""

LayerKind = Literal["full", "sliding"]
"""Kinds of layers: a position sees everything before it, or a window."""

Lengths = tuple[tuple[int, ...], ...]
"""For each row the lengths of its sequences, in their order; what pads a row is a sequence of its own."""


@dataclass(frozen=True, kw_only=True)
class AttentionServes:
    """What an attention can compute.

    Attributes:
        devices: types of devices, as the framework calls them: `cpu`, `cuda`, `mps`.
        architectures: patterns such as `sm_9*`, of which the device's architecture must match one; empty: all. A device
            whose hardware plugin does not know its architecture is taken.
        precisions: of queries, keys and values: `fp64`, `fp32`, `bf16`, `fp16`.
        largest_head: largest number of elements of a head; None: no limit.
        head_multiple: heads have a multiple of this many elements.
        segments: how rows that hold several sequences are kept apart.
        window: a position may see only a number of positions before it, a sliding window.
        softcap: scores may be capped, `cap * tanh(score / cap)`.
        sinks: a learned score for each head joins the softmax, and its share of the weights goes nowhere.
        grouped: keys and values may have fewer heads than queries.
        chunks: a position may see only the beginning of its own chunk of positions; and any other pattern that the
            model's code makes a mask of.
        dropout: weights may be dropped at random, by `torch.nn.functional.dropout`, which the backend keys by datum. A
            kernel that draws inside cannot say this.
        backward: it has gradients.
        fused: scores are never held whole: what comes after a position is not computed, and gradients form the scores
            again. The plan counts operations by it.
        packages: distributions that it needs, `flash-attn` or `torch>=2.10`.
    """

    devices: frozenset[str]
    architectures: tuple[str, ...] = ()
    precisions: frozenset[str] = frozenset({"fp32", "bf16", "fp16"})
    largest_head: int | None = None
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
    """What a model's layers need of attention in addition to products and a softmax; the family's facts hold it.

    Attributes:
        softcap: largest score, which `cap * tanh(score / cap)` approaches; None: scores are not capped.
        sinks: layers have a learned score for each head that joins the softmax.
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
            key: (rows, key-value heads, keys, head size). Where there are more keys than positions, they come from a
                cache, and the queries are those of the last positions. Query head h reads key-value head
                h // (heads / key-value heads).
            value: (rows, key-value heads, keys, value size).
            scale: factor on the products of queries and keys.
            lengths: of the sequences of each row, which add up to the number of keys, as plain integers: nothing has to
                be asked of the device. No position sees another sequence than its own.
            causal: a position sees itself and what comes before; False: its whole sequence.
            window: how many positions a position sees, the last one being itself; None: all.
            softcap: scores become `softcap * tanh(score / softcap)` before the softmax; None: they do not.
            sinks: (heads,) scores that join the softmax of each position, and weigh no value; None: there are none.

        Returns:
            (rows, heads, positions, value size), of the query's type.
        """
        ...
