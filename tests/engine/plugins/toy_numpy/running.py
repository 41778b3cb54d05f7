"""A running batch of the toy: a request is written to its end when it comes, and told token by token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from finetooth_hooks import Completion, EngineError, Sampling
from finetooth_hooks.compute.held import HeldAdapter
from finetooth_hooks.continuous import Written
from numpy.typing import NDArray

if TYPE_CHECKING:
    from toy_numpy.engine import NumpyEngine


class RunningBatch:
    """See `finetooth_hooks.continuous.RunningBatch`."""

    waiting = 0

    def __init__(self, engine: NumpyEngine) -> None:
        self._engine, self._made = engine, _weights(engine)
        self._next = 0
        self._writing: dict[int, list[Completion]] = {}
        self._told: dict[int, int] = {}

    def add(
        self, prompt: Sequence[int], sampling: Sampling, *, first: int = 0, adapter: HeldAdapter | None = None
    ) -> int:
        if adapter is not None:
            raise EngineError("this engine holds no adapters", action="sample it alone")
        if not prompt:
            raise EngineError("an empty prompt", action="give at least one token")
        number, self._next = self._next, self._next + 1
        self._writing[number] = [self._engine.complete(prompt, n, sampling) for n in range(first, first + sampling.n)]
        self._told[number] = 0
        return number

    def cancel(self, request: int) -> None:
        self._writing.pop(request, None)

    def step(self) -> list[Written]:
        if self.changed():
            raise EngineError("a running batch: the weights changed since it was made", action="make another one")
        written = []
        for number, several in list(self._writing.items()):
            at, self._told[number] = self._told[number], self._told[number] + 1
            for sample, one in enumerate(several):
                if at < len(one.tokens):
                    ended = one if at == len(one.tokens) - 1 else None
                    written.append(Written(number, sample, one.tokens[at], one.logprobs[at], ended))
            if all(at >= len(one.tokens) - 1 for one in several):
                del self._writing[number]
        return written

    def changed(self) -> bool:
        now = _weights(self._engine)
        return any(not np.array_equal(now[name], was) for name, was in self._made.items())

    def __len__(self) -> int:
        return len(self._writing)


def _weights(engine: NumpyEngine) -> dict[str, NDArray[np.float64]]:
    return {name: engine.model.delta[name].copy() for name in engine.named}
