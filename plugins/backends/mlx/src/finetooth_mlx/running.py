"""A sampling batch that requests join and leave, with the engine's weights and adapters that it holds.

Requests that begin together, with one prompt length and one adapter, form a batch; the batches take turns, a token
each.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from finetooth_hooks import EngineError, Sampling
from finetooth_hooks.compute.held import HeldAdapter
from finetooth_hooks.continuous import Written
from finetooth_hooks.sampling import ShownPrompt
from finetooth_steps.kept_prompts import Keeping
from finetooth_steps.sampling import row_streams

from finetooth_mlx.arrays import NamedArrays
from finetooth_mlx.generation import Generator, Row, Writing
from finetooth_mlx.network import Network


class MlxHeldAdapter(HeldAdapter):
    """Weights that replace the trained ones; None is the base alone."""

    def __init__(self, network: Network, weights: NamedArrays | None) -> None:
        self.network, self.weights = network, weights

    @property
    def size(self) -> int:
        return sum(array.nbytes for array in (self.weights or {}).values())

    def computing(self) -> AbstractContextManager[None]:
        """A `with` block in which the network computes with it."""
        if self.weights is None:
            return self.network.adapter.disabled(self.network.model)
        return self.network.holding(self.weights)


@dataclass
class _Request:
    """Rows that began together."""

    prompt: Sequence[int]
    rows: list[Row]
    adapter: MlxHeldAdapter
    owner: str


class MlxRunningBatch:
    """See `finetooth_hooks.continuous.RunningBatch`.

    Args:
        weights: the engine's; new ones end the batch.
    """

    owner = ""

    def __init__(self, generator: Generator, weights: Callable[[], NamedArrays], weights_version: int) -> None:
        self._generator, self._weights, self._version = generator, weights, weights_version
        self._own = MlxHeldAdapter(generator.network, weights())
        self._waiting: deque[_Request] = deque()
        self._writing: list[tuple[MlxHeldAdapter, int, Writing]] = []
        self._left: dict[int, int] = {}
        self._count = 0
        generator.running.add(self)

    @property
    def taken(self) -> int:
        """Positions of rows in progress and their prompts."""
        return sum(cells for _, cells, _ in self._writing)

    def add(
        self, prompt: Sequence[int], sampling: Sampling, *, first: int = 0, adapter: HeldAdapter | None = None
    ) -> int:
        held: Any = adapter or self._own
        if not isinstance(held, MlxHeldAdapter) or held.network is not self._generator.network:
            raise EngineError("a running batch: the engine does not hold this adapter", action="give one that it held")
        if isinstance(prompt, ShownPrompt):
            raise EngineError(
                "a running batch: its prompts are tokens alone, and this one holds more", action="call generate"
            )
        self._generator.check([prompt], sampling)
        number, self._count = self._count, self._count + 1
        rows = self._generator.rows(number, prompt, sampling, row_streams([prompt], sampling, first=first)[0])
        self._waiting.append(_Request(prompt, rows, held, self.owner))
        self._left[number] = len(rows)
        return number

    def cancel(self, request: int) -> None:
        self._left.pop(request, None)
        self._waiting = deque(waiting for waiting in self._waiting if waiting.rows[0].prompt != request)
        for _, _, writing in self._writing:
            for row in writing.rows:
                row.stopped = row.stopped or row.prompt == request
        self._leave()

    def __len__(self) -> int:
        return len(self._left)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def step(self) -> list[Written]:
        if self._weights() is not self._own.weights:
            raise EngineError(
                "a running batch: the engine's weights changed since it was made", action="make another one"
            )
        self._generator.network.train(False)
        try:
            self._begin()
            rows = []
            for adapter, _, writing in self._writing:
                with adapter.computing():
                    rows += writing.step()
        except BaseException:  # some rows already have the next token, others do not
            self._waiting.clear()
            self._writing, self._left = [], {}
            self._generator.kept.forget()
            raise
        self._leave()
        return [self._written(row) for row in rows]

    def _begin(self) -> None:
        """Begin the requests that fit."""
        taken, others = self.taken, sum(batch.taken for batch in self._generator.running if batch is not self)
        groups: dict[tuple[int, int], list[_Request]] = {}
        while self._waiting:
            request = self._waiting[0]
            cells = len(request.rows) * (len(request.prompt) + request.rows[0].room)
            if taken and taken + cells > self._generator.tokens:
                break
            taken += cells
            groups.setdefault((id(request.adapter), len(request.prompt)), []).append(self._waiting.popleft())
        free = max(0, self._generator.tokens - taken - others)
        self._generator.kept.fit(free)
        for alike in groups.values():
            rows = [row for request in alike for row in request.rows]
            cells = sum(len(alike[0].prompt) + row.room for row in rows)
            adapter = alike[0].adapter
            held = None if adapter is self._own else adapter
            asked = [(tuple(request.prompt), held, request.owner) for request in alike for _ in request.rows]
            keeping = Keeping(self._generator.kept, asked, free)
            self._writing.append((adapter, cells, Writing(self._generator, rows, keeping)))

    def _leave(self) -> None:
        self._writing = [of for of in self._writing if not of[2].done]

    def _written(self, row: Row) -> Written:
        completion = self._generator.completion(row, self._version) if row.done else None
        if completion is not None:
            self._left[row.prompt] -= 1
            if not self._left[row.prompt]:
                del self._left[row.prompt]
        return Written(row.prompt, row.sample, row.tokens[-1], row.logprobs[-1], completion)
