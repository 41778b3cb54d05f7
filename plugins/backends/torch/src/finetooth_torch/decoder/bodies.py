"""Two ways from a rectangle of tokens to hidden states: transformers' own forward, and the stream decoder."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import torch
from finetooth_hooks import EngineError
from finetooth_hooks.data.examples import MediumKind
from finetooth_hooks.protocols import Processor
from finetooth_kernels.decoder import ByRows, Decoder, Stream
from finetooth_kernels.memory import placed
from finetooth_steps.layout import least_saved
from finetooth_steps.rectangles import PlacedMedium
from torch import Tensor, nn

from finetooth_torch.attention.handing import handed, handing
from finetooth_torch.attention.slices import Slices
from finetooth_torch.draws import Draws
from finetooth_torch.embedding_noise import EmbeddingNoise, no_noise
from finetooth_torch.layout.angles import turn_by_length
from finetooth_torch.layout.rectangles import Rectangle, on_host
from finetooth_torch.layout.shared_rows import Masks, kinds_argument, pack, packed_states, sliced_states
from finetooth_torch.layout.stream import laid_out
from finetooth_torch.offload.transfers import placed_together
from finetooth_torch.planning.flops import Computed

TYPES: Mapping[MediumKind, int] = {"image": 1, "video": 2, "audio": 3}
"""transformers' number of each kind of token (`ProcessorMixin.create_mm_token_type_ids`)."""


@dataclass(frozen=True)
class States:
    """Hidden states after the final norm.

    Attributes:
        rows: (M, D).
        cells_st: (S, T) the row of each cell of the rectangle; if the caller asked only for the mask's cells, the
            others hold any row.
        computed: the cost, without the head.
        read_by: (M, D) inputs of the requested layers, by their numbers from 0.
        own: (S, T) cells that this rank computed; the others hold any row. None: all.
    """

    rows: Tensor
    cells_st: Tensor
    computed: Computed
    read_by: Mapping[int, Tensor] = field(default_factory=dict)
    own: Tensor | None = None


class Body(Protocol):
    """Computes states.

    Attributes:
        packed: without padding.
        shares: computes a common beginning of rows once, if that saves `least_saved` (`worth_sharing`).
        noise: on the policy's embeddings; None: without.
        draws: gets the layout of the positions; None: nothing trains.
    """

    packed: bool
    shares: bool
    least_saved: float
    noise: EmbeddingNoise | None
    draws: Draws | None

    def states(self, rectangle: Rectangle, *, everywhere: bool, layers: Collection[int] = ()) -> States:
        """States of every cell, or at least of those where the mask is true.

        Args:
            layers: numbers of layers, from 0, whose input is returned too.
        """
        ...


class TransformersBody:
    """The model's own code, on the padded rectangle or on shared rows.

    Args:
        masks: what keeps the segments of a row apart; see `packing`.
        skips: attention computes nothing between segments of a row.

    Attributes:
        slices: this rank's share of the positions of each row; None: all.
        by_length: the length of a sequence decides its rotary angles.
    """

    slices: Slices | None = None
    packed = shares = False
    least_saved = 0.0
    noise: EmbeddingNoise | None = None
    draws: Draws | None = None

    def __init__(
        self,
        body: nn.Module,
        *,
        masks: Masks = "own",
        skips: bool = False,
        layers: Sequence[nn.Module] = (),
        towers: Sequence[nn.Module] = (),
        processor: Callable[[], Processor] | None = None,
    ) -> None:
        """
        Args:
            body: of a model with towers, the one that puts their features among the tokens.
            masks: how segments of a row are kept apart.
            skips: masked pairs are not computed.
            layers: of the decoder, in order.
            towers: its modules for images and sound.
            processor: called at the first image, sound or video.
        """
        self._body, self._masks, self._skips, self._layers = body, masks, skips, layers
        self._towers, self._processor = tuple(towers), processor
        self._types = kinds_argument(body) if towers else ""
        self.by_length = turn_by_length(body)
        self._keeps_states = "cache_params" in inspect.signature(body.forward).parameters  # Mamba: it has no keys

    def states(self, rectangle: Rectangle, *, everywhere: bool, layers: Collection[int] = ()) -> States:
        del everywhere
        with _inputs_of(self._layers, layers) as read_by:
            states = self._states(rectangle)
        return replace(states, read_by={number: read.flatten(0, 1) for number, read in read_by.items()})

    def _sliced(self, rectangle: Rectangle, slices: Slices) -> States:
        """
        Raises:
            EngineError: the examples hold more than plain sequences.
        """
        if rectangle.media or rectangle.positions is not None:
            what = "images or sounds" if rectangle.media else "positions of their own"
            raise EngineError(
                f"scale.strategy: the data have {what}, and ranks divide the positions of rows",
                action="set scale.strategy: ddp",
            )
        packed = pack(rectangle, slices.pieces)
        (rows, width), device = packed.tokens.shape, packed.tokens.device
        columns = slices.columns(width, device)
        own = (torch.arange(rows, device=device)[:, None] * width + columns).flatten()
        _lay_out(self.draws, rectangle, packed.cells_st, packed.tokens.shape)
        if self.draws is not None:
            self.draws.narrow(own)
        with _noisy(self.noise, rectangle, packed.cells_st, rows * width, own):
            hidden = sliced_states(self._body, packed, slices)
        places = torch.full((rows * width,), -1, device=device)
        places[own] = torch.arange(len(own), device=device)
        cells = places[packed.cells_st]
        segments = tuple(n for row in packed.segments for n in row)
        return States(hidden.flatten(0, 1), cells.clamp_min(0), Computed(segments, 0, 0.0), own=cells >= 0)

    def _states(self, rectangle: Rectangle) -> States:
        if self.slices is not None:
            return self._sliced(rectangle, self.slices)
        if rectangle.batch.filled or rectangle.pieces is not None:
            packed = pack(rectangle)
            _lay_out(self.draws, rectangle, packed.cells_st, packed.tokens.shape)
            with _noisy(self.noise, rectangle, packed.cells_st, packed.tokens.numel()):
                hidden = packed_states(self._body, packed, self._masks)
            rows, width = packed.tokens.shape
            segments = tuple(n for row in packed.segments for n in row) if self._skips else (width,) * rows
            across = 0.0 if self._skips else rows * width * (width - 1) / 2  # masked pairs are computed too
            return States(hidden.flatten(0, 1), packed.cells_st, Computed(segments, 0, across))
        extra = self.media(rectangle.tokens, rectangle.media) if rectangle.media else {}
        cells = torch.arange(rectangle.tokens.numel(), device=rectangle.tokens.device).view(rectangle.tokens.shape)
        _lay_out(self.draws, rectangle, cells, cells.shape)
        with _noisy(self.noise, rectangle, cells, cells.numel()), self._lengths(rectangle):
            hidden = self.hidden(rectangle.tokens, positions=rectangle.positions, **extra).last_hidden_state
        if rectangle.media:
            self.take_shift()  # of these rows; generation would take them for those of its own
        rows, width = rectangle.tokens.shape
        return States(hidden.flatten(0, 1), cells, Computed((width,) * rows, 0))

    def _lengths(self, rectangle: Rectangle) -> AbstractContextManager[None]:
        """Inside the `with` block, angles that depend on lengths use the rows' lengths without padding."""
        width = rectangle.tokens.shape[1]
        rows = tuple((length, width - length) if length < width else (width,) for length in rectangle.batch.lengths)
        return handing(rows) if self.by_length else nullcontext()

    def hidden(self, tokens: Tensor, *, positions: Tensor | None = None, **extra: Any) -> Any:
        """The body's output for (S, T) ids; `last_hidden_state` is (S, T, D)."""
        if positions is not None and "attention_mask" not in extra:
            # without a mask, transformers reads a jump in the positions as a second packed sequence
            extra["attention_mask"] = torch.ones_like(tokens)
            with handing(handed() or ((tokens.shape[1],),) * tokens.shape[0]):
                return self.hidden(tokens, positions=positions, **extra)
        if positions is not None:
            extra["position_ids"] = positions
        if self._types and "past_key_values" not in extra:
            extra.setdefault(self._types, torch.zeros_like(tokens))
        if self._keeps_states and "past_key_values" in extra:
            extra["cache_params"] = extra.pop("past_key_values")
            if (mask := extra.get("attention_mask")) is not None:  # of what is read now
                extra["attention_mask"] = mask[:, -tokens.shape[1] :]
        extra.setdefault("use_cache", False)
        return self._body(input_ids=tokens, **extra)

    @property
    def counts_media(self) -> bool:
        """Positions after an image or video depend on its size: the model computes them, and stores their offset from
        the token count."""
        return hasattr(self._body, "rope_deltas")

    def take_shift(self) -> Tensor | None:
        """(S, 1) offset of the positions of the last rows from their token counts, which is then cleared. None: no
        offset."""
        shift: Tensor | None = getattr(self._body, "rope_deltas", None)
        if shift is not None:
            setattr(self._body, "rope_deltas", None)  # noqa: B010 - to mypy a module holds only tensors
        return shift

    def media(self, tokens: Tensor, media: Sequence[PlacedMedium]) -> dict[str, Any]:
        """The model's inputs in addition to (S, T) tokens.

        Args:
            media: row by row, in order.

        Raises:
            DataError: one cannot be opened, or the model does not accept its kind.
        """
        assert self._processor is not None  # otherwise the engine has refused the examples
        processor = self._processor()
        made = processor.inputs([medium.chunk for medium in media])
        dtype = next(parameter.dtype for tower in self._towers for parameter in tower.parameters())
        extra: dict[str, Any] = {self._types: _types(tokens, media, processor)} if self._types else {}
        for name, values in made.items():
            tensor = placed(torch.from_numpy(values), tokens.device)
            extra[name] = tensor.to(dtype) if tensor.is_floating_point() else tensor
        return extra


def _types(tokens: Tensor, media: Sequence[PlacedMedium], processor: Processor) -> Tensor:
    """(S, T) 0 for text, and transformers' number of the kind for placeholders of features."""
    types = torch.zeros_like(tokens)
    for medium in media:
        place = (medium.row, slice(medium.start, medium.start + len(medium.chunk)))
        ids = placed(torch.tensor(sorted(processor.token_ids(medium.chunk.kind))), tokens.device)
        types[place] = torch.isin(tokens[place], ids).to(tokens.dtype) * TYPES[medium.chunk.kind]
    return types


class StreamBody:
    """The stream decoder: no padding, and common beginnings are computed once.

    Args:
        model: with the decoder's layers; if it has dropout, rows do not share beginnings in training mode.
        pieces: computes the layer after attention; None: at once.
    """

    packed = True
    noise: EmbeddingNoise | None = None
    draws: Draws | None = None

    def __init__(self, decoder: Decoder, model: nn.Module, pieces: ByRows | None = None) -> None:
        self.decoder, self._model, self._pieces = decoder, model, pieces
        self.least_saved = least_saved(next(model.parameters()).device.type)
        self.shares = not any(isinstance(module, nn.Dropout) and module.p > 0 for module in model.modules())

    def states(self, rectangle: Rectangle, *, everywhere: bool, layers: Collection[int] = ()) -> States:
        read_by: dict[int, Tensor] = {}

        def keep(number: int, h_nd: Tensor) -> None:
            if number in layers:
                read_by[number] = h_nd

        between: dict[str, Any] = {"between": keep} if layers else {}  # a decoder without it serves the last layer
        if self._pieces is not None:
            between["by_rows"] = self._pieces
        share = (self.shares and self.noise is None) or not self._model.training
        stream, cells_st = laid_out(rectangle, share=share)
        computed = computed_of(stream)
        _lay_out(self.draws, rectangle, stream.cells_st, (len(stream),))
        if everywhere:
            with _noisy(self.noise, rectangle, stream.cells_st, len(stream)):
                return States(self.decoder.hidden(stream, **between), stream.cells_st, computed, read_by)
        mask = on_host(rectangle).mask
        needed, inverse = np.unique(cells_st[mask], return_inverse=True)
        places = np.zeros_like(cells_st)
        places[mask] = inverse
        if len(needed) == 0:  # a row without trained positions still has a graph
            needed = np.zeros(1, dtype=np.int64)
        cells, wanted = placed_together([places, needed], stream.tokens.device)
        if self.draws is not None:
            self.draws.narrow(wanted)
        with _noisy(self.noise, rectangle, stream.cells_st, len(stream)):
            rows = self.decoder.hidden(stream, wanted, **between)
        read = {number: h_nd.index_select(0, wanted) for number, h_nd in read_by.items()}
        return States(rows, cells, replace(computed, last_rows=len(wanted)), read)


@contextmanager
def _inputs_of(layers: Sequence[nn.Module], wanted: Collection[int]) -> Iterator[dict[int, Tensor]]:
    """Inputs of layers inside the `with` block, by their numbers."""
    read: dict[int, Tensor] = {}

    def hook(number: int) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        def keep(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            read[number] = args[0] if args else kwargs["hidden_states"]

        return keep

    handles = [layers[number].register_forward_pre_hook(hook(number), with_kwargs=True) for number in wanted]
    try:
        yield read
    finally:
        for handle in handles:
            handle.remove()


def _lay_out(draws: Draws | None, rectangle: Rectangle, cells_st: Tensor, shape: Sequence[int]) -> None:
    if draws is not None:
        draws.lay_out(cells_st, rectangle.batch.lengths, shape)


def _noisy(
    noise: EmbeddingNoise | None, rectangle: Rectangle, cells_st: Tensor, positions: int, wanted: Tensor | None = None
) -> AbstractContextManager[None]:
    return no_noise() if noise is None else noise.over(cells_st, rectangle.batch.lengths, positions, wanted)


def computed_of(stream: Stream, *, last_rows: int | None = None) -> Computed:
    """The cost of a pass over a stream, without the head.

    Args:
        last_rows: positions that continue after the last layer's attention; None: all.
    """
    return Computed(
        tuple(segment.stop - segment.start for segment in stream.segments),
        0,
        sum((segment.below - segment.stop) * (segment.stop - segment.start) for segment in stream.segments),
        last_rows,
    )
