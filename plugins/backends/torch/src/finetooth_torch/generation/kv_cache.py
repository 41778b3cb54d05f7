"""Keys and values of rows in progress: preallocated; finished rows leave.

Rows form a grid of P prompts by n samples. With one sample per prompt, a row's cache holds its prompt and its
completion; with several, all samples of a prompt share its keys and values. Prompts are right-aligned, so all rows
write their next token into the same column; columns before a shorter prompt are not read.

Memory is reserved for the most columns that the rows may need; a host allocates it at the first write. The compiled
kernel reads the columns in place. Without it, attention is matrix products: columns are masked, and if the product
needs dense operands (half precision, oneDNN), the used columns are dense and are copied again every `BLOCK` tokens; on
devices that have graphs always, every `BUCKET` tokens, since a graph is of so many columns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from finetooth_kernels.contract import result_dtype
from finetooth_kernels.memory import new_lasting, placed
from finetooth_kernels.segments import Looks
from torch import Tensor

from finetooth_torch.device import graphs
from finetooth_torch.generation.cached_attention import attend_cached, attend_shared

BLOCK = 32
"""Columns by which a dense cache grows."""

BUCKET = 128
"""Likewise on a device that has graphs."""


class KeyValueCache:
    """The cache of P x n rows.

    Args:
        lengths: of the P prompts.
        samples: n.
        room: most new tokens per row.
        layers, kv_heads, size: of the model; `size` is the head's.
        like: a tensor with the dtype and the device.
        kernel: see `Compute.cached_attention`.
        on_device: the device counts the columns too, so that a graph of a token's step stays valid until `capacity`
            changes or rows leave. Only for layers with `Looks.usual`.

    Attributes:
        columns: that hold a key.
        capacity: columns that are laid out.
    """

    def __init__(
        self, lengths: Sequence[int], samples: int, room: int, *, layers: int, kv_heads: int, size: int,
        like: Tensor, kernel: Callable[..., Any] | None = None,
        on_device: bool = False,
    ) -> None:  # fmt: skip
        self._kernel, self._on_device = kernel, on_device
        self.prompts, self.samples = len(lengths), samples
        self._like, self._heads, self._size, self._width = like, kv_heads, size, max(lengths)
        self._lengths = list(lengths)
        self._compiled = None if kernel is None else kernel(like, size)
        replays = graphs.replays(like.device)
        self._dense = self._compiled is None and (replays or like.dtype != result_dtype(like.dtype))
        self._grows = BUCKET if replays else BLOCK
        shared = samples > 1
        self.columns = 0 if shared else self._width
        counted = like.device if on_device or self._compiled is not None else torch.device("cpu")
        self._columns_1 = placed(torch.tensor([self.columns]), counted)
        self._newest_1 = self._columns_1 - 1
        most = self.columns + room
        if self._dense:
            most = -(-most // BLOCK) * BLOCK
        self._most = most
        self.capacity = min(most, (self.columns // self._grows + 1) * self._grows) if self._dense else most
        numbers = 2 * self.rows * kv_heads * most * size
        self._memory = [new_lasting(like, (numbers,)) for _ in range(layers)]
        self._own = [self._laid_out(memory) for memory in self._memory]
        self._shared: list[Tensor] | None = None
        padding = _padding(lengths, self._width, like) if self._compiled is None else None
        self._above_mask, self._mask = None, padding
        if shared:
            own = (2, self.prompts, kv_heads, self._width, size)
            self._shared = [new_lasting(like, own) for _ in range(layers)]
            self._above_mask, self._mask = padding, None
        if self._dense:
            self._hide_unwritten(most)
        self._starts = self._width - placed(torch.tensor(lengths), like.device)
        self._from = (torch.arange(self._width, device=like.device) - self._starts.unsqueeze(-1)).clamp_min_(0)

    @property
    def rows(self) -> int:
        """P x n."""
        return self.prompts * self.samples

    @property
    def shared(self) -> bool:
        """Whether prompts are stored separately from completions, also when one row of each remains."""
        return self._shared is not None

    @property
    def itemsize(self) -> int:
        """Bytes per number."""
        return self._like.element_size()

    def write_prompts(self, layer: int, kv_nhd: Tensor, cells_pt: Tensor) -> None:
        """Store the prompts' keys and values.

        Args:
            kv_nhd: (N, 2 K, D), keys first.
            cells_pt: (P, T) the row of each token of each prompt, from the left.
        """
        rows = cells_pt.gather(1, self._from)
        of_prompts = kv_nhd.index_select(0, rows.flatten()).view(*rows.shape, 2, self._heads, self._size)
        place = self._own[layer][..., : self._width, :] if self._shared is None else self._shared[layer]
        place.copy_(of_prompts.permute(2, 0, 3, 1, 4))

    def advance(self) -> None:
        """Begin the next column; with `on_device` the device's part is `advance_on_device`."""
        if self.columns == self.capacity:
            self.capacity = min(self._most, self.capacity + self._grows)
            self._lay_out_anew(None)
        self.columns += 1
        if self._on_device:
            return
        if self._dense and self._mask is not None:
            self._mask[..., self.columns - 1] = 0.0
        self._columns_1.fill_(self.columns)

    def advance_on_device(self) -> None:
        """Begin the next column there, where the number of columns is read on the device."""
        self._columns_1 += 1
        self._newest_1 += 1
        if self._dense and self._mask is not None:
            self._mask.index_fill_(-1, self._newest_1, 0.0)

    @property
    def positions(self) -> int:
        """Positions of the longest row."""
        return self.columns + (0 if self._shared is None else self._width)

    def attend(self, layer: int, qkv_rhd: Tensor, heads: int, looks: Looks, out: Tensor) -> None:
        """Write the newest column and attend to all columns up to it.

        Args:
            qkv_rhd: (R, H + 2 K, D) of the newest token of each row.
            out: (R, H D), contiguous, for the result.
        """
        own = self._own[layer][:, : self.rows]
        if self._compiled is not None and looks.usual(self.positions):
            self._compiled(
                qkv_rhd.contiguous(), own, self._columns_1, looks.scale, starts_p=self._starts, samples=self.samples,
                above_hpkwd=None if self._shared is None else self._shared[layer], out=out,
            )  # fmt: skip
            return
        usual = looks.usual(self.positions)
        newest = torch.unflatten(qkv_rhd[:, heads:], 1, (2, -1)).transpose(0, 1)
        if self._on_device:
            own.index_copy_(3, self._newest_1, newest.unsqueeze(3))
        else:
            own.select(3, self.columns - 1).copy_(newest)
        span = self.capacity if self._dense and usual else self.columns
        width = 0 if self._shared is None else self._width
        first = max(0, self.positions - looks.window) if looks.window else 0  # of the columns within the window
        keys, values = own[:, :, :, max(0, first - width) : span].unbind(0)
        queries = torch.unflatten(qkv_rhd[:, :heads], 1, (self._heads, -1))
        mask, above_mask = self._mask if self._mask is None else self._mask[..., :span], self._above_mask
        if not usual:
            before = torch.arange(first, self.positions, device=qkv_rhd.device) < self._starts.unsqueeze(-1)
            hidden = torch.zeros(before.shape, dtype=result_dtype(qkv_rhd.dtype), device=before.device)
            hidden = hidden.masked_fill_(before, -torch.inf)[:, None, None]
            mask, above_mask = (hidden, None) if self._shared is None else (None, hidden[..., : max(0, width - first)])
        if self._shared is None:
            attended = attend_cached(queries, keys, values, looks=looks, mask=mask)
        else:
            above = self._shared[layer][:, : self.prompts, :, min(first, width) :].unbind(0)
            attended = attend_shared(
                queries, keys, values, *above, looks=looks, mask=mask, above_mask=above_mask
            )  # fmt: skip
        out.copy_(attended.flatten(1))

    def retire(self, alive: Sequence[bool]) -> list[int]:
        """Drop finished rows.

        A prompt leaves when all its samples have finished; the last prompt takes its place. Of the others, prompts with
        fewer running rows keep some finished ones.

        Args:
            alive: for each of the R rows.

        Returns:
            For each remaining row, its former index.
        """
        samples = self.samples
        rows = [list(range(p * samples, (p + 1) * samples)) for p in range(self.prompts)]
        place = 0
        while place < len(rows):
            if any(alive[row] for row in rows[place]):
                place += 1
                continue
            last, length = rows.pop(), self._lengths.pop()
            if place < len(rows):
                self._move(len(rows), place)
                rows[place], self._lengths[place] = last, length
        self.prompts = len(rows)
        self._starts = self._starts[: self.prompts]
        for name in ("_mask", "_above_mask"):
            mask = getattr(self, name)
            if mask is not None and mask.shape[0] > 1:
                setattr(self, name, mask[: max(1, self.prompts)])
        most = max((sum(alive[row] for row in of) for of in rows), default=samples)
        if most < samples:
            remaining = [sorted(of, key=lambda row: not alive[row])[:most] for of in rows]
            index = [p * samples + of.index(row) for p, of in enumerate(rows) for row in remaining[p]]
            self.samples, rows = most, remaining
            self._lay_out_anew(placed(torch.tensor(index), self._like.device))
        return [row for of in rows for row in of]

    def _move(self, source: int, place: int) -> None:
        """Copy the caches of prompt `source` over those of prompt `place`."""
        n = self.samples
        for own in self._own:
            written = own[:, :, :, : self.columns]
            written[:, place * n : (place + 1) * n] = written[:, source * n : (source + 1) * n]
        for shared in self._shared or ():
            shared[:, place] = shared[:, source]
        self._starts[place] = self._starts[source]
        for mask in (self._mask, self._above_mask):
            if mask is not None and mask.shape[0] > 1:
                mask[place] = mask[source]

    def _laid_out(self, memory: Tensor) -> Tensor:
        """(2, R, K, C, D) at the beginning of `memory`; unwritten columns are zero where they are read."""
        shape = 2, self.rows, self._heads, self.capacity, self._size
        laid_out = memory[: 2 * self.rows * self._heads * self.capacity * self._size].view(shape)
        if self._dense:
            laid_out[:, :, :, self.columns :].zero_()
        return laid_out

    def _lay_out_anew(self, index: Tensor | None) -> None:
        """Lay out the present capacity and rows; `index` has the rows' former indices (None: the first ones)."""
        spare = new_lasting(self._memory[0], self._memory[0].shape)
        for layer, memory in enumerate(self._memory):
            written = self._own[layer][:, :, :, : self.columns]
            fresh = self._laid_out(spare)
            fresh[:, :, :, : self.columns] = (
                written[:, : self.rows] if index is None else written.index_select(1, index)
            )
            self._own[layer], self._memory[layer] = fresh, spare
            spare = memory

    def _hide_unwritten(self, most: int) -> None:
        """Mask the columns up to `most` that hold no key yet."""
        hidden = torch.full((most,), -torch.inf, dtype=result_dtype(self._like.dtype), device=self._like.device)
        hidden[: self.columns] = 0.0
        hidden = hidden.expand(1 if self._mask is None else self.prompts, 1, 1, most).clone()
        if self._mask is not None:
            hidden[..., : self._width] = self._mask
        self._mask = hidden


def merged(first: KeyValueCache, second: KeyValueCache) -> KeyValueCache:
    """One cache with the rows of the first, then of the second; neither may be used again. Both began with one sample
    per prompt."""
    both = first, second
    lengths = [length + cache.columns - cache._width for cache in both for length in cache._lengths]
    room = max(cache._most - cache.columns for cache in both)
    layers, size, like = len(first._own), first._size, first._like
    joint = KeyValueCache(
        lengths,
        1,
        room,
        layers=layers,
        kv_heads=first._heads,
        size=size,
        like=like,
        kernel=first._kernel,
        on_device=first._on_device,
    )
    for layer, own in enumerate(joint._own):
        begin = 0
        for cache in both:
            width = min(cache.columns, joint.columns)  # the longest row may have left
            rows = own[:, begin : begin + cache.rows]
            rows[:, :, :, : joint.columns - width].zero_()  # hidden, and must be finite
            written = cache._own[layer][:, : cache.rows, :, cache.columns - width : cache.columns]
            rows[:, :, :, joint.columns - width : joint.columns] = written
            begin += cache.rows
            cache._own[layer] = own  # free its memory layer by layer
            cache._memory[layer] = own
    return joint


def _padding(lengths: Sequence[int], width: int, like: Tensor) -> Tensor | None:
    """(P, 1, 1, W), -inf in the columns before a prompt; None if all are equally long."""
    if min(lengths) == width:
        return None
    starts = width - placed(torch.tensor(lengths), like.device)
    hidden = torch.arange(width, device=like.device) < starts.unsqueeze(-1)
    mask = torch.zeros(hidden.shape, dtype=result_dtype(like.dtype), device=like.device)
    return mask.masked_fill_(hidden, -torch.inf)[:, None, None]
