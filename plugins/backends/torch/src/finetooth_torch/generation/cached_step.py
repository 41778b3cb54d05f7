"""Decoding token by token: with the stream decoder and our own caches, or with transformers' model and cache.

The stream decoder reads prompts like training data (packed, common beginnings once), or from where earlier calls
have read them, and then runs one row per
completion through the same layers, with weights packed for products of few rows. Rows of similar prompt length share a
cache, so it has little padding.
"""

from __future__ import annotations

import sys
from collections.abc import Hashable, Sequence
from itertools import count
from typing import Any, Protocol

import numpy as np
import torch
from finetooth_hooks.protocols import ModelFacts
from finetooth_hooks.sampling import ShownPrompt
from finetooth_kernels.capture import Repeated
from finetooth_kernels.decoder import Decoder, Group, PlainGroup
from finetooth_kernels.memory import placed
from finetooth_steps.kept_prompts import Beginning, Keeping
from finetooth_steps.rectangles import PlacedMedium
from torch import Tensor
from torch.nn.functional import pad
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from finetooth_torch.attention.handing import handing
from finetooth_torch.compute import Compute
from finetooth_torch.decoder.bodies import TransformersBody
from finetooth_torch.generation.kv_cache import KeyValueCache, merged
from finetooth_torch.generation.packed_layers import packed
from finetooth_torch.generation.prompt_streams import continued, shared
from finetooth_torch.generation.row_adapters import Given, RowAdapters
from finetooth_torch.planning.flops import Computed

WASTE = 256 * 1024
"""Bytes of padding per layer and step above which rows get a separate cache; each cache costs every layer another call
of attention."""
JOINED = 1.25
"""Columns of rows that are joined, at most, to their positions: the rest is padding."""


class Decoding(Protocol):
    """Rows in progress. A prompt's samples are next to each other.

    Attributes:
        computed: cost of reading the prompts; known after that.
        contexts: for each prompt, the positions that its rows' first token attends to, padding included.
    """

    computed: Computed
    contexts: Sequence[int]

    def read(self) -> Tensor:
        """Read the prompts. (R, D), the state before each row's next token."""
        ...

    def advance(self, tokens: Tensor) -> Tensor:
        """Append a token to each row. (R, D), the state before the next token."""
        ...

    def begin_column(self) -> Hashable | None:
        """The host's part of `advance`, if the device can do its part without asking the host. What is returned stays
        the same while that is computed on the same memory; None, without a change: it cannot."""
        ...

    def advance_on_device(self, tokens: Tensor) -> Tensor:
        """The device's part of `advance`."""
        ...

    def retire(self, finished: Sequence[bool]) -> list[int]:
        """Drop finished rows; some may stay. For each remaining row, its former index."""
        ...

    def join(self, other: Decoding) -> bool:
        """Append the rows of another; the prompts of both have been read. False, without a change, if they cannot be
        joined."""
        ...


class PackedLayers:
    """The decoder's layers with weights packed for sampling: made when sampling begins, dropped when it ends.

    Args:
        adapters: rows may have different adapters; then weights that cannot be packed are used unpacked.

    Attributes:
        rows: which adapter each row has.
    """

    def __init__(self, decoder: Decoder, compute: Compute, *, pack: bool, adapters: bool = False) -> None:
        self.decoder, self.compute, self.rows = decoder, compute, RowAdapters()
        numbers = count()

        def prepare(group: PlainGroup) -> Group:
            if not pack:
                return group
            number, pack_one = next(numbers), compute.packed_linear
            return packed(group, pack_one, always=adapters, number=number, rows=self.rows, runs=compute.runs)

        self.layers = [layer.prepared(prepare) for layer in decoder.layers]


class StreamDecoding:
    """See `Decoding`.

    Args:
        prompts: longest first.
        samples: rows per prompt.
        room: most new tokens per row.
        adapters: of each prompt.
    """

    def __init__(
        self, packed_layers: PackedLayers, facts: ModelFacts, prompts: Sequence[Sequence[int]], samples: int, room: int,
        *, device: torch.device, keeping: Keeping, adapters: Sequence[Given] = (),
    ) -> None:  # fmt: skip
        self._keeping = keeping
        self._decoder, self._layers, self._facts = packed_layers.decoder, packed_layers.layers, facts
        self._rows = packed_layers.rows
        self._adapters = [adapter for adapter in adapters or (None,) * len(prompts) for _ in range(samples)]
        self._prompts, self._samples, self._room, self._device = prompts, samples, room, device
        self._cached_attention = packed_layers.compute.cached_attention
        self._caches: list[KeyValueCache] = []
        lengths = [len(prompt) for prompt in prompts]
        self.contexts: Sequence[int] = lengths
        self.computed = Computed((), 0)
        self._positions = placed(torch.tensor(lengths).repeat_interleave(samples), device)
        self._step = Repeated()
        self._windows = {layer.looks.window for layer in self._layers} - {0}
        usual = all(layer.looks.usual(sys.maxsize) for layer in self._layers)
        self._on_device = packed_layers.compute.graphs is not None and usual
        self._changes = 0  # of rows

    def read(self) -> Tensor:
        lengths = [len(prompt) for prompt in self._prompts]
        of_prompts = self._adapters[:: self._samples]
        owners = [owner for _, _, owner in self._keeping.asked]
        prompts = shared(self._prompts, of_prompts, owners, self._facts.vocab_size, self._device)
        begun = self._keeping.begun()
        if sum(lengths) - sum(len(of.rows) for of in begun if of is not None) < len(prompts.stream):
            prompts = continued(self._prompts, of_prompts, begun, self._facts.heads, self._device)
        self._rows.say(prompts.adapters)
        self.computed = prompts.computed
        cells = [placed(torch.from_numpy(places), self._device) for places in prompts.cells]
        cells_pt, caches = torch.nn.utils.rnn.pad_sequence(cells, batch_first=True), list[Tensor]()
        layers, keeps = list[Tensor](), False

        def keep(i: int, qkv: Tensor) -> None:
            nonlocal keeps
            kv = qkv[:, self._facts.heads :]
            if not self._caches:
                caches.extend(self._open(lengths, cells_pt, qkv))
                keeps = self._keeping.makes_room(len(kv), begun)
            for cache, of_cache in zip(self._caches, caches, strict=True):
                cache.write_prompts(i, kv, of_cache)
            if keeps:
                layers.append(kv.clone())

        # with several adapters, every position goes through the last layer, so that all layers have the same rows
        wanted = None if self._rows.mixed else prompts.last
        read = self._decoder.hidden(prompts.stream, wanted, layers=self._layers, keep=keep, whole=prompts.whole)
        if keeps:
            self._keeping.keep(prompts.cells, layers)
        read = read if wanted is not None else read.index_select(0, prompts.last)
        return read.repeat_interleave(self._samples, 0)

    def _open(self, lengths: Sequence[int], cells_pt: Tensor, like: Tensor) -> list[Tensor]:
        """Make the caches; return the cells of the prompts in each."""
        facts = self._facts
        column = 2 * facts.kv_heads * facts.head_dim * like.element_size()
        places = _alike(lengths, WASTE // column)
        self._caches = [
            KeyValueCache(
                lengths[place], self._samples, self._room,
                layers=facts.layers, kv_heads=facts.kv_heads, size=facts.head_dim, like=like,
                kernel=self._cached_attention, on_device=self._on_device,
            )
            for place in places
        ]  # fmt: skip
        return [cells_pt[place] for place in places]

    def begin_column(self) -> Hashable | None:
        if not self._on_device:
            return None
        for cache in self._caches:
            cache.advance()
        self._rows.say(self._adapters)
        return self._changes, *(cache.capacity for cache in self._caches)

    def advance_on_device(self, tokens: Tensor) -> Tensor:
        for cache in self._caches:
            cache.advance_on_device()
        h_rd = self._advanced(self._decoder.embedded(tokens), *self._decoder.angles(self._positions))
        self._positions += 1
        return self._decoder.normed(h_rd)

    def advance(self, tokens: Tensor) -> Tensor:
        if self.begin_column() is not None:
            return self.advance_on_device(tokens)
        hidden = self._hidden()
        for cache in self._caches:
            cache.advance()
        if self._hidden() != hidden:  # a window begins to hide columns that a captured step would read
            self._step.forget()
        self._rows.say(self._adapters)
        h_rd = self._step(self._advanced, self._decoder.embedded(tokens), *self._decoder.angles(self._positions))
        self._positions += 1
        return self._decoder.normed(h_rd)

    def _advanced(self, h_rd: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Run a token of each row through the layers."""
        facts = self._facts
        sizes = [cache.rows for cache in self._caches]
        for i, layer in enumerate(self._layers):
            h_rd, qkv = layer.project(h_rd, cos, sin)
            attended = qkv.new_empty((qkv.shape[0], facts.heads * facts.head_dim))
            parts: Any = qkv.split(sizes), attended.split(sizes)  # type: ignore[no-untyped-call]
            for cache, rows, out in zip(self._caches, *parts, strict=True):
                cache.attend(i, rows, facts.heads, layer.looks, out)
            h_rd = layer.feed(h_rd, attended)
        return h_rd

    def _hidden(self) -> list[bool]:
        """For each cache and window, whether the cache is longer than the window."""
        return [cache.positions > window for cache in self._caches for window in self._windows]

    def retire(self, finished: Sequence[bool]) -> list[int]:
        left: list[int] = []
        start = 0
        for cache in self._caches:
            rows = cache.rows
            left += [start + row for row in cache.retire([not done for done in finished[start : start + rows]])]
            start += rows
        if len(left) == len(finished):
            return left
        self._step.forget()
        self._changes += 1
        self._caches = [cache for cache in self._caches if cache.rows]
        self._positions = self._positions[placed(torch.tensor(left, dtype=torch.int64), self._device)]
        self._adapters = [self._adapters[row] for row in left]
        return left

    def join(self, other: Decoding) -> bool:
        if not isinstance(other, StreamDecoding) or other._layers is not self._layers:
            return False
        self._step.forget()
        self._changes += 1
        self._caches += other._caches
        self._positions = torch.cat([self._positions, other._positions])
        self._adapters = self._adapters + other._adapters
        while len(self._caches) > 1 and self._worth_merging(*self._caches[-2:]):
            self._caches[-2:] = [merged(*self._caches[-2:])]
        return True

    def _worth_merging(self, older: KeyValueCache, newer: KeyValueCache) -> bool:
        """Join consecutive caches if that gives little padding and the older has no more rows than the newer. So a row
        moves at most once per doubling of the number of rows, and few caches remain."""
        if older.shared or newer.shared or older.rows > newer.rows:
            return False
        facts = self._facts
        column = 2 * facts.kv_heads * facts.head_dim * older.itemsize
        shorter = min(older, newer, key=lambda cache: cache.columns)
        return abs(older.columns - newer.columns) * shorter.rows * column <= WASTE


def _alike(lengths: Sequence[int], waste: int) -> list[slice]:
    """Split descending lengths into runs, while a split saves more than `waste` columns."""
    saved = [(len(lengths) - i) * (lengths[0] - lengths[i]) for i in range(len(lengths))]
    cut = max(range(len(lengths)), key=saved.__getitem__)
    if saved[cut] <= waste:
        return [slice(0, len(lengths))]
    runs = []
    for start, part in ((0, lengths[:cut]), (cut, lengths[cut:])):
        runs += [slice(start + run.start, start + run.stop) for run in _alike(part, waste)]
    return runs


class TransformersDecoding:
    """See `Decoding`; prompts padded on the left, rows leaving as soon as they finish.

    Args:
        adapters: of each prompt.
        rows: tells the body which adapter each row has; None: the engine's own.
        keeping: None keeps nothing.
    """

    def __init__(
        self, body: TransformersBody, config: Any, prompts: Sequence[Sequence[int]], samples: int, *,
        device: torch.device, adapters: Sequence[Given] = (), rows: RowAdapters | None = None,
        keeping: Keeping | None = None,
    ) -> None:  # fmt: skip
        self._rows, self._adapters, self._keeping = rows, list(adapters), keeping
        self._body, self._prompts, self._samples, self._device = body, prompts, samples, device
        self._cache = DynamicCache(config=config)
        width = max(len(prompt) for prompt in prompts)
        self.contexts: Sequence[int] = [width] * len(prompts)
        self.computed = Computed((), 0)
        self._padding = [width - len(prompt) for prompt in prompts]
        starts = placed(torch.tensor(self._padding), device)
        self._mask = (torch.arange(width, device=device) >= starts.unsqueeze(-1)).long()
        self._shift = torch.zeros((len(prompts), 1), dtype=torch.int64, device=device)  # see `take_shift`

    def read(self) -> Tensor:
        width, prompts = self._mask.shape[1], self._prompts
        begun = [None] * len(prompts) if self._keeping is None else self._keeping.begun()
        left = [len(prompt) - (len(of.rows) if of else 0) for prompt, of in zip(prompts, begun, strict=True)]
        # every row reads equally many of its last tokens; the columns before these are kept ones or padding
        known = width - max(left)
        if known:
            self._continue(begun, known)
        self.computed = Computed((width - known,) * len(prompts), 0, float(len(prompts) * (width - known) * known))
        padded = [[0] * (width - len(prompt)) + list(prompt) for prompt in prompts]
        tokens = placed(torch.tensor(padded)[:, known:].contiguous(), self._device)
        positions = (self._mask.cumsum(1) - 1).clamp_min(0)[:, known:]
        media = [
            PlacedMedium(row, self._padding[row] + start, chunk)
            for row, prompt in enumerate(prompts)
            if isinstance(prompt, ShownPrompt)
            for start, chunk in prompt.media
        ]
        hidden = self._show(tokens, positions, media) if media else self._run(tokens, positions)
        if self._keeping is not None and not media:
            self._keep(self._keeping, begun)
        if self._samples > 1:  # a prompt is read once for all its samples
            rows = torch.arange(len(self._prompts), device=self._device)
            self._take(rows.repeat_interleave(self._samples))
            self._mask = self._mask.repeat_interleave(self._samples, 0)
            self._padding = [n for n in self._padding for _ in range(self._samples)]
            self._shift = self._shift.repeat_interleave(self._samples, 0)
            self._adapters = [adapter for adapter in self._adapters for _ in range(self._samples)]
        return hidden.repeat_interleave(self._samples, 0)

    def _continue(self, begun: Sequence[Beginning | None], known: int) -> None:
        """Fill the first columns of the cache with what was read before."""
        parts = [
            (row, beginning.read.layers, placed(torch.from_numpy(beginning.rows[: known - padding]), self._device))
            for row, (beginning, padding) in enumerate(zip(begun, self._padding, strict=True))
            if beginning and known > padding
        ]
        like: Sequence[Tensor] = parts[0][1]
        for number in range(0, len(like), 2):
            both = [of.new_zeros((len(begun), known, *of.shape[1:])) for of in like[number : number + 2]]
            for row, layers, cells in parts:
                for of, layer in zip(both, layers[number : number + 2], strict=True):
                    of[row, known - len(cells) :] = layer.index_select(0, cells)
            keys, values = (of.transpose(1, 2) for of in both)
            self._cache.update(keys, values, number // 2)

    def _layers(self) -> list[Any]:
        """The layers of the cache if each has keys and values of all positions of the rows; else none."""
        layers, width = self._cache.layers, self._mask.shape[1]
        plain = all(type(layer) is DynamicLayer and layer.get_seq_length() == width for layer in layers)
        return list(layers) if plain else []

    def _keep(self, keeping: Keeping, begun: Sequence[Beginning | None]) -> None:
        """Keep what the cache has of the prompts."""
        rows, width = self._mask.shape
        layers = self._layers()
        if layers and keeping.makes_room(rows * width, begun):
            cells = [np.arange(padding, width) + row * width for row, padding in enumerate(self._padding)]
            both = [of.transpose(1, 2).flatten(0, 1) for layer in layers for of in (layer.keys, layer.values)]
            keeping.keep(cells, both)

    def begin_column(self) -> None:
        return None  # transformers' cache grows with every token

    def advance_on_device(self, tokens: Tensor) -> Tensor:
        return self.advance(tokens)  # no graph is made of the model's own code

    def advance(self, tokens: Tensor) -> Tensor:
        self._mask = torch.cat([self._mask, self._mask.new_ones(self._mask.shape[0], 1)], 1)
        return self._run(tokens.unsqueeze(1), self._mask.sum(1, keepdim=True) - 1 + self._shift)

    def _show(self, tokens: Tensor, positions: Tensor, media: Sequence[PlacedMedium]) -> Tensor:
        """Read prompts with images, sounds or videos among them."""
        extra = self._body.media(tokens, media)
        own = self._body.counts_media
        self._body.take_shift()
        hidden = self._run(tokens, None if own else positions, **extra)
        shift = self._body.take_shift()
        if shift is not None:
            self._shift = shift.to(self._shift.dtype)
        return hidden

    def _take(self, rows: Tensor) -> None:
        """Select these rows of the cache: of keys and values, and of states of convolutions and recurrences, for which
        it is the only way."""
        self._cache.reorder_cache(rows)  # type: ignore[arg-type] # no object has the declared type

    def _run(self, tokens: Tensor, positions: Tensor | None, **extra: Any) -> Tensor:
        padded = any(self._padding)
        width = self._mask.shape[1]
        if self._rows is not None:
            self._rows.say(self._adapters)
        with handing(tuple((n, width - n) if n else (width,) for n in self._padding)):
            out = self._body.hidden(
                tokens,
                positions=positions,
                attention_mask=self._mask if padded or positions is None else None,
                past_key_values=self._cache,
                use_cache=True,
                **extra,
            )
        last: Tensor = out.last_hidden_state[:, -1]
        return last

    def retire(self, finished: Sequence[bool]) -> list[int]:
        left = [row for row, done in enumerate(finished) if not done]
        index = placed(torch.tensor(left, dtype=torch.int64), self._device)
        if left:
            self._take(index)
        self._mask = self._mask[index]
        self._padding = [self._padding[row] for row in left]
        self._shift = self._shift[index]
        self._adapters = [self._adapters[row] for row in left] if self._rows is not None else []
        self._widen(-min(self._padding, default=0))
        return left

    def _widen(self, columns: int) -> None:
        """Add so many columns of padding before those of the rows, or remove them. Nothing without plain layers."""
        layers = self._layers()
        if layers and columns:
            for layer in layers:
                layer.keys, layer.values = (pad(of, (0, 0, columns, 0)) for of in (layer.keys, layer.values))
            self._mask = pad(self._mask, (columns, 0))
            self._padding = [padding + columns for padding in self._padding]

    def join(self, other: Decoding) -> bool:
        if not isinstance(other, TransformersDecoding) or other._body is not self._body or self._body.by_length:
            return False
        layers, others = self._layers(), other._layers()
        (rows, width), (more, theirs) = self._mask.shape, other._mask.shape
        joint = max(width, theirs)
        positions = rows * width + more * theirs - sum(self._padding) - sum(other._padding)
        if not (rows and layers and others) or (rows + more) * joint > JOINED * positions:
            return False
        self._widen(joint - width)
        other._widen(joint - theirs)
        for layer, its in zip(layers, others, strict=True):
            layer.keys, layer.values = torch.cat([layer.keys, its.keys]), torch.cat([layer.values, its.values])
        self._mask, self._shift = torch.cat([self._mask, other._mask]), torch.cat([self._shift, other._shift])
        self._padding, self._adapters = self._padding + other._padding, self._adapters + other._adapters
        return True
