"""A running batch of several ranks: each writes its share of the rows, and all get every token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from finetooth_hooks import Sampling
from finetooth_hooks.compute.collectives import Collective
from finetooth_hooks.compute.held import HeldAdapter
from finetooth_hooks.continuous import RunningBatch, Written

from finetooth_steps.agreement import of_ranks


class DividedBatch:
    """See `finetooth_hooks.continuous.RunningBatch`. Every rank makes the same calls. The samples of a request are
    divided, each to the rank with the fewest unfinished ones; a step is one exchange.

    Args:
        batch: of this rank's engine.
    """

    owner = ""

    def __init__(self, batch: RunningBatch, collective: Collective) -> None:
        self._batch, self._collective = batch, collective
        self._left: list[dict[int, int]] = [{} for _ in range(collective.world)]  # unfinished samples by request
        self._own: dict[int, tuple[int, int]] = {}  # by this rank's number: that of all ranks, and the first sample
        self._waiting = set[int]()
        self._requests = 0

    def add(
        self, prompt: Sequence[int], sampling: Sampling, *, first: int = 0, adapter: HeldAdapter | None = None
    ) -> int:
        shares, rank = self._shares(sampling.n), self._collective.rank
        before = sum(shares[:rank])
        mine = replace(sampling, n=max(1, shares[rank]))
        self._batch.owner = self.owner
        own = self._batch.add(prompt, mine, first=first + before, adapter=adapter)
        number, self._requests = self._requests, self._requests + 1
        self._own[own] = number, before
        if not shares[rank]:  # added to be checked as at the other ranks
            self._drop(own)
        for left, share in zip(self._left, shares, strict=True):
            if share:
                left[number] = share
        self._waiting.add(number)
        return number

    def _shares(self, samples: int) -> list[int]:
        """How many of the samples of a new request each rank writes."""
        loads = [sum(left.values()) for left in self._left]
        shares = [0] * len(loads)
        for _ in range(samples):
            rank = loads.index(min(loads))
            loads[rank] += 1
            shares[rank] += 1
        return shares

    def _drop(self, own: int) -> None:
        self._batch.cancel(own)
        del self._own[own]

    def cancel(self, request: int) -> None:
        for own in [own for own, (number, _) in self._own.items() if number == request]:
            self._drop(own)
        for left in self._left:
            left.pop(request, None)
        self._waiting.discard(request)

    def __len__(self) -> int:
        return len(set().union(*self._left))

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def step(self) -> list[Written]:
        if not len(self):
            return self._batch.step()
        try:
            parts = of_ranks(self._collective, self._stepped)
        except Exception:
            for request in set().union(*self._left):
                self.cancel(request)
            raise
        self._waiting.clear()
        for left, (written, waiting) in zip(self._left, parts, strict=True):
            for token in written:
                if token.completion is not None:
                    left[token.request] -= 1
                    if not left[token.request]:
                        del left[token.request]
            self._waiting.update(list(left)[len(left) - waiting :])  # rows begin in the order of their coming
        mine = self._left[self._collective.rank]
        self._own = {own: of for own, of in self._own.items() if of[0] in mine}
        return [token for written, _ in parts for token in written]

    def _stepped(self) -> tuple[list[Written], int]:
        """This rank's new tokens, under the numbers of all ranks, and the number of its waiting requests."""
        written = []
        for token in self._batch.step():
            number, first = self._own[token.request]
            written.append(replace(token, request=number, sample=first + token.sample))
        return written, self._batch.waiting
