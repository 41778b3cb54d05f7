"""Two ways from a rectangle of tokens to hidden states: transformers' own forward, and the stream decoder."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from finetooth_hooks.protocols import ModelFacts
from torch import Tensor, nn

from finetooth_torch.decoder import Decoder
from finetooth_torch.flops import Computed
from finetooth_torch.rectangles import Rectangle
from finetooth_torch.stream import make_stream


@dataclass(frozen=True)
class States:
    """Hidden states after the final norm.

    Attributes:
        rows: (M, D).
        cells_st: (S, T) the row of each cell of the rectangle; where only the mask's cells were asked for, the others
            hold any row.
        computed: what that took; the head comes later.
    """

    rows: Tensor
    cells_st: Tensor
    computed: Computed


class Body(Protocol):
    """Computes states. `packed` says whether padding is left out."""

    packed: bool

    def states(self, rectangle: Rectangle, *, everywhere: bool) -> States:
        """Of every cell, or at least of those where the mask is true."""
        ...


class TransformersBody:
    """The model's own code, on the padded rectangle."""

    packed = False

    def __init__(self, body: nn.Module) -> None:
        self._body = body

    def states(self, rectangle: Rectangle, *, everywhere: bool) -> States:
        del everywhere
        hidden = self.hidden(rectangle.tokens, positions=rectangle.positions).last_hidden_state
        cells = torch.arange(rectangle.tokens.numel(), device=rectangle.tokens.device)
        rows, width = rectangle.tokens.shape
        return States(hidden.flatten(0, 1), cells.view(rows, width), Computed((width,) * rows, 0))

    def hidden(self, tokens: Tensor, *, positions: Tensor | None = None, **extra: Any) -> Any:
        """The body's output for (S, T) ids; `last_hidden_state` is (S, T, D)."""
        if positions is not None and "attention_mask" not in extra:
            # without a mask transformers takes a jump in the positions for a packed second sequence
            extra["attention_mask"] = torch.ones_like(tokens)
        if positions is not None:
            extra["position_ids"] = positions
        extra.setdefault("use_cache", False)
        return self._body(input_ids=tokens, **extra)


class StreamBody:
    """The stream decoder: no padding, common beginnings once.

    Args:
        model: what the decoder computes; where it drops at random, in training mode, rows must not share what they
            begin with.
    """

    packed = True

    def __init__(self, decoder: Decoder, model: nn.Module) -> None:
        self.decoder, self._model = decoder, model
        self._dropout = any(isinstance(module, nn.Dropout) and module.p > 0 for module in model.modules())

    def states(self, rectangle: Rectangle, *, everywhere: bool) -> States:
        stream = make_stream(rectangle, share=not (self._dropout and self._model.training))
        computed = Computed(
            tuple(segment.stop - segment.start for segment in stream.segments),
            0,
            sum((segment.below - segment.stop) * (segment.stop - segment.start) for segment in stream.segments),
        )
        if everywhere:
            return States(self.decoder.hidden(stream), stream.cells_st, computed)
        wanted, inverse = torch.unique(stream.cells_st[rectangle.mask], return_inverse=True)
        cells = torch.zeros_like(stream.cells_st)
        cells[rectangle.mask] = inverse
        if len(wanted) == 0:  # a row that trains nothing still has a graph
            wanted = wanted.new_zeros(1)
        return States(self.decoder.hidden(stream, wanted), cells, replace(computed, last_rows=len(wanted)))


def differs(body: nn.Module, decoder: Decoder, facts: ModelFacts) -> float:
    """Distance between the decoder's states and the model's own on a few tokens, as a share of the states' norm. The
    model must be in evaluation mode.

    Rounding alone gives about 1e-5 in fp32 and up to a tenth in bf16; a decoder that computes something else, about 1.
    """
    from finetooth_torch.layout import MicroBatch

    device = next(body.parameters()).device
    tokens = torch.arange(1, 13, device=device).mul(997).remainder(facts.vocab_size).view(2, 6)
    mask = torch.ones_like(tokens, dtype=torch.bool)
    rectangle = Rectangle(MicroBatch((0, 1), (6, 6)), tokens, None, mask, tokens)
    with torch.no_grad():
        theirs = TransformersBody(body).states(rectangle, everywhere=True)
        ours = StreamBody(decoder, body).states(rectangle, everywhere=True)
    expected, found = (states.rows[states.cells_st].double() for states in (theirs, ours))
    return float((found - expected).norm() / expected.norm())
