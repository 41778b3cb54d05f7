"""The result of the operation `stream_decoder`: the layers of a model, computed over a stream of tokens without
padding.

A backend that has the model's own code can do without; what it gets in exchange is a decoder that it can take apart,
since sampling runs the same layers row by row, over a cache and with weights packed for it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from finetooth_hooks.protocols import LowRank, ModelFacts
from torch import Tensor, nn

from finetooth_kernels.low_rank_linear import Again
from finetooth_kernels.memory import Arena
from finetooth_kernels.segments import Looks, Segment

__all__ = [
    "ByRows",
    "Decoder",
    "FindLowRank",
    "Group",
    "GroupParts",
    "Layer",
    "LayerOperations",
    "MakeDecoder",
    "PlainGroup",
    "Stream",
]

FindLowRank = Callable[[nn.Module], LowRank | None]
"""Returns an adapter's low-rank form of a wrapped linear module."""

ByRows = Callable[..., Tensor]
"""Calls a function of tensors (N, ...) that treats each row by itself, for some rows at a time."""


@dataclass(frozen=True)
class Stream:
    """N positions.

    Attributes:
        tokens, positions: (N,) input ids and position ids.
        segments: in depth-first order.
        cells_st: (S, T) where in the stream each cell of a rectangle of sequences was computed; 0 for padding.
        rows: (N,) where the positions stand among the rows of the segments, if these have keys and values of others
            too (see `whole` of `Decoder.hidden`); None: they are the same.
    """

    tokens: Tensor
    positions: Tensor
    segments: tuple[Segment, ...]
    cells_st: Tensor
    rows: Tensor | None = None

    def __len__(self) -> int:
        return int(self.tokens.shape[0])


@dataclass(frozen=True)
class GroupParts:
    """The present computation of a group: g (x W^T + (x A^T) B^T) + b.

    Attributes:
        weight, bias: (O, D) and (O,).
        a, b: (R, D) and (O, R), the additions of all layers with their scales in B; None without any.
        gains: (O,), with DoRA the g, in full precision; None: they are 1.
    """

    weight: Tensor
    bias: Tensor | None = None
    a: Tensor | None = None
    b: Tensor | None = None
    gains: Tensor | None = None


class Group(Protocol):
    """Linear modules that read the same rows."""

    def __call__(
        self, x_nd: Tensor, again: Again | None = None, base_no: Tensor | None = None, arena: Arena | None = None,
        *, passing: bool = False,
    ) -> Tensor:  # fmt: skip
        """(N, inputs) to (N, sum of outputs), side by side.

        Args:
            again: makes `x_nd` once more in backward, so that it need not be kept; see `low_rank_linear`.
            base_no: tensor to which the outputs are added; the result has its dtype.
            arena, passing: memory of kept tensors; see there too.
        """
        ...


class PlainGroup(Group, Protocol):
    """A group of the model's own modules."""

    def parts(self, low_rank: FindLowRank | None = None) -> GroupParts | None:
        """The group as matrices, without a graph; None where a module is more than them.

        Args:
            low_rank: what another adapter says of the modules, None of one that it leaves alone; instead of the
                decoder's own.
        """
        ...


class Layer(Protocol):
    """One layer. The residual stream that it is given may be wider than what it computes in.

    Attributes:
        looks: how its attention makes weights; a position of a row of the cache does likewise.
    """

    @property
    def looks(self) -> Looks: ...

    def project(
        self, h_nd: Tensor, cos_nr: Tensor, sin_nr: Tensor, arena: Arena | None = None
    ) -> tuple[Tensor, Tensor]:
        """The residual stream, and (N, H + 2 K, head_dim): queries and keys, rotated, and values."""
        ...

    def feed(self, h_nd: Tensor, attended_nd: Tensor, arena: Arena | None = None) -> Tensor:
        """The residual stream after what comes behind attention: its output projection and the feed-forward block."""
        ...

    def prepared(self, prepare: Callable[[Any], Any]) -> Layer:
        """This layer with what `prepare` makes of its groups, each a `PlainGroup`; they are called like them."""
        ...


class Decoder(Protocol):
    """The body of a model, whose weights stay in its own modules.

    Attributes:
        layers: of the body, in their order.
    """

    @property
    def layers(self) -> Sequence[Layer]: ...

    def lay_out(self) -> None:
        """Move weights to where they are wanted now, before activations fill the gaps that this leaves."""
        ...

    def hidden(
        self, stream: Stream, wanted: Tensor | None = None, *, layers: Sequence[Layer] | None = None,
        keep: Callable[[int, Tensor], None] | None = None, between: Callable[[int, Tensor], None] | None = None,
        by_rows: ByRows | None = None, whole: Callable[[int, Tensor], Tensor] | None = None,
    ) -> Tensor:  # fmt: skip
        """States after the final norm, (N, D); with `wanted` (M,), (M, D) for those positions only.

        Args:
            layers: instead of the decoder's own, these, prepared from them.
            keep: is told each layer's number and its rotated queries and keys, and values, (N, H + 2 K, head_dim).
            between: gets each layer's number, from 0, and the residual stream (N, D) that it reads.
            by_rows: computes `Layer.feed`, which treats each position by itself; None: for all at once.
            whole: from each layer's number and the (N, H + 2 K, head_dim) of the stream to those of all rows of its
                segments, which attention reads and `keep` gets; None: they are the same.
        """
        ...

    def embedded(self, tokens_n: Tensor) -> Tensor:
        """(N, D), where the residual stream begins."""
        ...

    def angles(self, positions_n: Tensor) -> tuple[Tensor, Tensor]:
        """Cosine and sine, (N, R/2) each, float32, for position ids; of models whose layers turn by different angles
        those of each kind, (kinds, N, R/2)."""
        ...

    def normed(self, h_nd: Tensor) -> Tensor:
        """After the last layer."""
        ...


class LayerOperations(Protocol):
    """The operations that layers consist of, as the plan picked them; see `finetooth_kernels.operations`."""

    @property
    def rms_norm(self) -> Callable[..., Any]: ...

    @property
    def rotary(self) -> Callable[..., Any]: ...

    @property
    def norm_rotary(self) -> Callable[..., Any]: ...

    @property
    def gated_mlp(self) -> Callable[..., Any]: ...

    @property
    def low_rank_linear(self) -> Callable[..., Any]: ...

    @property
    def segment_attention(self) -> Callable[..., Any]: ...

    @property
    def windowed_attention(self) -> Callable[..., Any]: ...


class MakeDecoder(Protocol):
    """The operation."""

    def __call__(
        self, body: nn.Module, facts: ModelFacts, low_rank: FindLowRank, *, checkpointing: bool,
        compute: LayerOperations,
    ) -> Decoder:  # fmt: skip
        """
        Args:
            body: the module of the model without its head.
            facts: with a block.
            low_rank: returns the adapter's form of a wrapped linear module.
            checkpointing: recompute each layer in backward.
            compute: the operations.
        """
        ...
