"""A running batch for engines without the capability `continuous`: waiting requests with the same settings are sampled
to their end, and none joins meanwhile."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

from finetooth_hooks import Engine, EngineError, Sampling
from finetooth_hooks.compute.held import HeldAdapter
from finetooth_hooks.continuous import RunningBatch, Written

from finetooth_server.batches.shared_batch import SharedBatch


class PlainBatch:
    """See `finetooth_hooks.continuous.RunningBatch`. A step gives all tokens of its requests."""

    owner = ""

    def __init__(self, engine: Engine) -> None:
        self.tenant = ""
        self._engine = engine
        self._waiting: dict[int, tuple[list[int], Sampling, int]] = {}
        self._requests = 0

    def add(
        self, prompt: Sequence[int], sampling: Sampling, *, first: int = 0, adapter: HeldAdapter | None = None
    ) -> int:
        if adapter is not None:
            raise EngineError("this engine holds no adapters", action="sample it alone")
        number, self._requests = self._requests, self._requests + 1
        self._waiting[number] = list(prompt), sampling, first
        return number

    def cancel(self, request: int) -> None:
        self._waiting.pop(request, None)

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def step(self) -> list[Written]:
        if not self._waiting:
            return []
        _, sampling, first = next(iter(self._waiting.values()))
        taken: dict[tuple[int, ...], int] = {}  # equal prompts would continue the numbers of samples
        for number, (prompt, wanted, begin) in self._waiting.items():
            if (wanted, begin) == (sampling, first):
                taken.setdefault(tuple(prompt), number)
        for number in taken.values():
            del self._waiting[number]
        generated = self._engine.generate([list(prompt) for prompt in taken], replace(sampling, n=first + sampling.n))
        written = []
        for number, completions in zip(taken.values(), generated, strict=True):
            for sample, completion in enumerate(completions[first:]):
                last = len(completion.tokens) - 1
                for i, (token, logprob) in enumerate(zip(completion.tokens, completion.logprobs, strict=True)):
                    written.append(Written(number, sample, token, logprob, completion if i == last else None))
        return written


class TenantsBatch(RunningBatch, Protocol):
    """A running batch that knows the tenants of requests.

    Attributes:
        tenant: of the requests that are added next.
    """

    tenant: str


def running_batch(engine: Engine) -> TenantsBatch:
    """The engine's own batch, shared by tenants, or a `PlainBatch`."""
    if "continuous" in engine.capabilities:
        return SharedBatch(engine.running_batch())
    return PlainBatch(engine)
