"""A sampling batch that requests join and leave (see `finetooth_hooks.continuous`).

Requests that fit begin together: the engine reads their prompts in one pass, longest first, as `generate` does. Then
their rows join the running ones, so that one product with the weights serves all. Batches whose caches cannot be joined
take turns, a token each.

This is batching by iteration: Yu et al., 2022, "Orca: A Distributed Serving System for Transformer-Based Generative
Models", section 3.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from finetooth_hooks import EngineError, Sampling
from finetooth_hooks.compute.held import HeldAdapter
from finetooth_hooks.continuous import Written
from finetooth_hooks.protocols import Tokenizer
from finetooth_hooks.sampling import ShownPrompt
from finetooth_steps.sampling import row_streams

from finetooth_torch.generation.generator import WORTH_PACKING, Generator, Weights
from finetooth_torch.generation.row_adapters import Given
from finetooth_torch.generation.rows_in_progress import Row, Writing


@dataclass
class _Wave:
    """Samples of one request that begin together.

    Attributes:
        cells: most positions of them and their prompt.
        adapter, owner: of the request.
    """

    request: int
    prompt: list[int]
    samples: range
    sampling: Sampling
    streams: list[np.random.Generator]
    cells: int
    adapter: Given
    owner: str


class TorchRunningBatch:
    """See `finetooth_hooks.continuous.RunningBatch`.

    Args:
        tokens: most positions of all rows and prompts in the batch; a single request may take more.
        changes: how often the engine's weights have changed.
        weights_version: optimizer steps done.
        attempt: runs work that takes memory on the engine's device; running out of memory is an EngineError.
        gathered: context in which this rank holds the whole model, entered while requests run.
    """

    def __init__(
        self, generator: Generator, tokenizer: Tokenizer, *, tokens: int, changes: Callable[[], int],
        weights_version: int, attempt: Callable[[Callable[[], Any]], Any],
        gathered: Callable[[], AbstractContextManager[None]],
    ) -> None:  # fmt: skip
        self._generator, self._tokenizer, self._tokens = generator, tokenizer, tokens
        self._changes, self._made, self._version = changes, changes(), weights_version
        self._attempt, self._gathered, self._whole = attempt, gathered, ExitStack()
        self._weights: Weights | None = None
        self._packed = False
        self._waiting: deque[_Wave] = deque()
        self._writing: list[Writing] = []
        self._begun: list[tuple[_Wave, list[Row]]] = []
        self._left: dict[int, int] = {}  # rows of each request that are not finished
        self._requests = 0
        self.owner = ""
        generator.running.add(self)

    def add(
        self, prompt: Sequence[int], sampling: Sampling, *, first: int = 0, adapter: HeldAdapter | None = None
    ) -> int:
        checked = self._generator.check_held(adapter)
        if isinstance(prompt, ShownPrompt):
            raise EngineError(
                "a running batch: its prompts are tokens alone, and this one holds more", action="call generate"
            )
        prompt = [int(token) for token in prompt]
        self._generator.check([prompt], sampling)
        number, self._requests = self._requests, self._requests + 1
        self._waiting.extend(self._attempt(lambda: self._waves(number, prompt, sampling, first, checked)))
        self._left[number] = sampling.n
        return number

    def _waves(self, number: int, prompt: list[int], sampling: Sampling, first: int, adapter: Given) -> list[_Wave]:
        """The samples of a request, in parts that fit."""
        streams = row_streams([prompt], sampling, first=first)[0]
        room = self._generator.room(prompt, sampling)
        fit = max(1, (self._tokens - len(prompt)) // room)
        waves, parts = -(-sampling.n // fit), list[_Wave]()
        for wave in range(waves):
            samples = range(wave * sampling.n // waves, (wave + 1) * sampling.n // waves)
            cells = len(prompt) + len(samples) * room
            of_wave = [streams[sample] for sample in samples]
            parts.append(_Wave(number, prompt, samples, sampling, of_wave, cells, adapter, self.owner))
        return parts

    def cancel(self, request: int) -> None:
        if self._left.pop(request, None) is None:
            return
        self._waiting = deque(wave for wave in self._waiting if wave.request != request)
        for writing in self._writing:
            for row in writing.rows:
                if row.prompt == request:
                    row.room = 0
            writing.retire()
        self._drop_empty()

    def __len__(self) -> int:
        return len(self._left)

    @property
    def taken(self) -> int:
        """Positions of rows in progress and their prompts."""
        return sum(wave.cells for wave, _ in self._begun)

    @property
    def waiting(self) -> int:
        return len({wave.request for wave in self._waiting})

    def step(self) -> list[Written]:
        if self._changes() != self._made:
            raise EngineError(
                "a running batch: the engine's weights changed since it was made", action="make another one"
            )
        try:
            if self._left and self._weights is None:
                self._whole.enter_context(self._gathered())
            rows: list[Row] = self._attempt(self._advance)
        except Exception:  # some rows have the next token and others not: none can continue
            self._drop_all()
            raise
        written = [self._written(row) for row in rows]
        self._drop_empty()
        return written

    def _advance(self) -> list[Row]:
        """Sample a token for every row, and the first for new rows."""
        self._generator.prepare()
        with torch.no_grad():
            rows = [row for writing in self._writing for row in writing.step()]
            return rows + self._begin(self._admitted())

    def _admitted(self) -> list[_Wave]:
        """Parts of requests that fit now, in order of arrival."""
        taken, chosen = self.taken, list[_Wave]()
        while self._waiting and (taken == 0 or taken + self._waiting[0].cells <= self._tokens):
            wave = self._waiting.popleft()
            chosen.append(wave)
            taken += wave.cells
        return chosen

    def _begin(self, waves: Sequence[_Wave]) -> list[Row]:
        """Read prompts and sample first tokens; prompts with equally many samples are read together."""
        if not waves:
            return []
        most = max(wave.sampling.max_tokens for wave in waves)
        with_adapters = any(wave.adapter is not None for wave in waves)
        missing = self._weights is None or (with_adapters and not self._weights.adapters)
        if missing or (most >= WORTH_PACKING and not self._packed):
            # rows keep the weights with which they began, unpacked or without adapters
            self._packed = with_adapters or most >= WORTH_PACKING
            self._weights = self._generator.weights(most, adapters=with_adapters)
        assert self._weights is not None
        begun: list[Row] = []
        for samples in sorted({len(wave.samples) for wave in waves}):
            alike = sorted((w for w in waves if len(w.samples) == samples), key=lambda wave: -len(wave.prompt))
            rows: list[Row] = []
            for wave in alike:
                of_wave = [
                    self._generator.row(wave.request, sample, wave.prompt, wave.sampling, stream)
                    for sample, stream in zip(wave.samples, wave.streams, strict=True)
                ]
                self._begun.append((wave, of_wave))
                rows += of_wave
            adapters = [wave.adapter for wave in alike]
            given, owners = [wave.prompt for wave in alike], [wave.owner for wave in alike]
            writing = self._generator.writing(given, rows, self._weights, adapters, owners=owners)
            begun += writing.begin()
            if writing.rows and not any(other.join(writing) for other in self._writing):
                self._writing.append(writing)
        return begun

    def _written(self, row: Row) -> Written:
        completion = row.completion(self._tokenizer, self._version) if row.finished else None
        if completion is not None:
            self._left[row.prompt] -= 1
            if not self._left[row.prompt]:
                del self._left[row.prompt]
        return Written(row.prompt, row.sample, row.tokens[-1], row.logprobs[-1], completion)

    def _drop_all(self) -> None:
        """Drop all requests and their memory."""
        self._left.clear()
        self._waiting.clear()
        self._writing, self._begun, self._weights = [], [], None
        self._whole.close()

    def _drop_empty(self) -> None:
        self._begun = [(wave, rows) for wave, rows in self._begun if not all(row.finished for row in rows)]
        self._writing = [writing for writing in self._writing if writing.rows]
        if not self._left:
            self._weights = None  # packed weights take as much as the model's own
            self._whole.close()
