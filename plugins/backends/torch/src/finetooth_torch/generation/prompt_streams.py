"""Prompts as a stream for the decoder: beginnings that they share are read once, or beginnings of earlier calls not at
all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from finetooth_kernels.decoder import Stream
from finetooth_kernels.memory import placed
from finetooth_kernels.segments import Segment
from finetooth_steps.kept_prompts import Beginning
from finetooth_steps.micro_batches import MicroBatch
from finetooth_steps.rectangles import OnHost
from numpy.typing import NDArray
from torch import Tensor

from finetooth_torch.decoder.bodies import computed_of
from finetooth_torch.generation.row_adapters import Given
from finetooth_torch.layout.rectangles import Rectangle
from finetooth_torch.layout.stream import laid_out
from finetooth_torch.planning.flops import Computed


@dataclass(frozen=True)
class PromptStream:
    """P prompts, laid out.

    Attributes:
        stream: positions to read.
        cells: for each prompt, the rows of its tokens among those that attention reads.
        last: (P,) where in the stream each prompt's last token stands.
        adapters: of each position to read, or of all.
        computed: the cost of reading them.
        whole: see `Decoder.hidden`; None: attention reads the stream alone.
    """

    stream: Stream
    cells: Sequence[NDArray[np.int64]]
    last: Tensor
    adapters: Sequence[Given]
    computed: Computed
    whole: Callable[[int, Tensor], Tensor] | None = None


def shared(
    prompts: Sequence[Sequence[int]], adapters: Sequence[Given], owners: Sequence[str], vocab_size: int,
    device: torch.device,
) -> PromptStream:  # fmt: skip
    """The prompts, each common beginning once."""
    lengths = [len(prompt) for prompt in prompts]
    tokens = np.zeros((len(prompts), max(lengths)), dtype=np.int64)
    for row, prompt in zip(tokens, prompts, strict=True):
        row[: len(prompt)] = prompt
    given = list(zip(adapters, owners, strict=True))
    different = list(dict.fromkeys(given))
    # prompts with different adapters or owners share no beginning, even with the same tokens
    offsets = np.array([different.index(of) for of in given]) * vocab_size
    host = OnHost(tokens + offsets[:, None], np.ones(tokens.shape, dtype=np.bool_))
    shifted = placed(torch.from_numpy(host.tokens), device)
    batch = MicroBatch(tuple(range(len(prompts))), tuple(lengths), packed=True)
    stream, cells_pt = laid_out(Rectangle(batch, shifted, None, shifted >= 0, shifted, host=host), share=True)
    whose = torch.div(stream.tokens, vocab_size, rounding_mode="floor")
    cells = [of_prompt[:length] for of_prompt, length in zip(cells_pt, lengths, strict=True)]
    of_rows = adapters[:1]
    if len(set(adapters)) > 1:  # known on the host
        of_rows = [None] * len(stream.tokens)
        for places, adapter in zip(cells, adapters, strict=True):
            for cell in places:
                of_rows[cell] = adapter
    last = stream.cells_st.gather(1, placed(torch.tensor(lengths).unsqueeze(-1) - 1, device)).squeeze(-1)
    stream = replace(stream, tokens=stream.tokens - whose * vocab_size)
    return PromptStream(stream, cells, last, of_rows, computed_of(stream, last_rows=len(prompts)))


def continued(
    prompts: Sequence[Sequence[int]], adapters: Sequence[Given], begun: Sequence[Beginning | None], heads: int,
    device: torch.device,
) -> PromptStream:  # fmt: skip
    """The prompts without the beginnings that were read before, each a sequence of its own.

    Args:
        heads: of queries.
    """
    given = [0 if beginning is None else len(beginning.rows) for beginning in begun]
    left = [len(prompt) - count for prompt, count in zip(prompts, given, strict=True)]
    ends = np.cumsum([len(prompt) for prompt in prompts])
    starts = [int(end) - len(prompt) for end, prompt in zip(ends, prompts, strict=True)]
    cells = [np.arange(start, int(end)) for start, end in zip(starts, ends, strict=True)]
    segments = [
        Segment(start, int(end), int(end), count) for start, end, count in zip(starts, ends, given, strict=True)
    ]
    tokens = np.concatenate([np.asarray(prompt[count:]) for prompt, count in zip(prompts, given, strict=True)])
    positions = np.concatenate([np.arange(n, len(prompt)) for prompt, n in zip(prompts, given, strict=True)])
    own = np.concatenate([places[count:] for places, count in zip(cells, given, strict=True)])

    def there(numbers: NDArray[np.int64]) -> Tensor:
        return placed(torch.from_numpy(numbers.astype(np.int64)), device)

    parts = [
        (beginning.read, there(beginning.rows), there(places[:count]))
        for beginning, places, count in zip(begun, cells, given, strict=True)
        if beginning is not None
    ]
    own_n, rows = there(own), int(ends[-1])

    def whole(layer: int, qkv_nhd: Tensor) -> Tensor:
        qkv_mhd = qkv_nhd.new_zeros((rows, *qkv_nhd.shape[1:]))
        qkv_mhd.index_copy_(0, own_n, qkv_nhd)
        kv_mkd = qkv_mhd[:, heads:]
        for read, taken, places in parts:
            kv_mkd.index_copy_(0, places, read.layers[layer].index_select(0, taken))
        return qkv_mhd

    of_rows = adapters[:1]
    if len(set(adapters)) > 1:
        of_rows = [adapter for adapter, count in zip(adapters, left, strict=True) for _ in range(count)]
    stream = Stream(there(tokens), there(positions), tuple(segments), own_n.unsqueeze(0), rows=own_n)
    across = float(sum(count * rest for count, rest in zip(given, left, strict=True)))
    computed = Computed(tuple(left), 0, across, len(prompts))
    return PromptStream(stream, cells, there(np.cumsum(left) - 1), of_rows, computed, whole)
