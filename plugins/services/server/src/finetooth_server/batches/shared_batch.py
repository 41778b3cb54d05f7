"""A running batch whose room tenants share: a call with a thousand samples does not block a call with one.

Samples run in portions; each has its own number and random stream, so its tokens do not depend on the others. The
tenant with the fewest tokens so far begins the next portion. If a tenant has nothing in the batch and finds no room,
another tenant's latest portion is dropped and sampled again later: its tokens are the same, and delivered ones are not
delivered again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from finetooth_hooks import Sampling
from finetooth_hooks.continuous import RunningBatch, Written

from finetooth_server.limits.fairness import Shares

PORTION = 16
"""Samples per portion, for which the prompt is read once."""

AT_ONCE = 4
"""Most portions that begin in one step."""


@dataclass
class _Portion:
    """Samples of a request that begin together.

    Attributes:
        number: in the inner batch; -1 while it waits.
        begun: it has room, and got a token.
        stood: steps of waiting in the inner batch.
        done: finished samples.
    """

    request: int
    samples: range
    number: int = -1
    begun: bool = False
    stood: int = 0
    done: set[int] = field(default_factory=set)


@dataclass
class _Request:
    """A request.

    Attributes:
        more: further arguments for the inner batch.
        left: number of unfinished samples.
        told: number of each sample's delivered tokens.
        ahead: number of each sample's tokens since its portion last began.
    """

    tenant: str
    prompt: Sequence[int]
    sampling: Sampling
    first: int
    more: dict[str, Any]
    left: int
    told: dict[int, int] = field(default_factory=dict)
    ahead: dict[int, int] = field(default_factory=dict)


class SharedBatch:
    """See `finetooth_hooks.continuous.RunningBatch`.

    Args:
        batch: the inner batch.

    Attributes:
        tenant: of the next requests, and their owner in the inner batch.
    """

    def __init__(self, batch: RunningBatch) -> None:
        self._batch = batch
        self.tenant = self.owner = ""
        self._requests: dict[int, _Request] = {}
        self._waiting: dict[str, list[_Portion]] = {}
        self._inside: dict[int, _Portion] = {}  # in order of arrival there
        self._shares: Shares[str] = Shares()
        self._count = 0

    def add(self, prompt: Sequence[int], sampling: Sampling, *, first: int = 0, **more: Any) -> int:
        number, self._count = self._count, self._count + 1
        self._requests[number] = _Request(self.tenant, prompt, sampling, first, more, sampling.n)
        portions = [
            _Portion(number, range(start, min(start + PORTION, sampling.n))) for start in range(0, sampling.n, PORTION)
        ] or [_Portion(number, range(sampling.n))]  # the inner batch refuses invalid requests
        try:
            self._begin(portions[0])
        except BaseException:
            del self._requests[number]
            raise
        if portions[1:]:
            self._waiting.setdefault(self.tenant, []).extend(portions[1:])
        return number

    def cancel(self, request: int) -> None:
        known = self._requests.pop(request, None)
        if known is None:
            return
        self._wait(
            known.tenant, [portion for portion in self._waiting.get(known.tenant, []) if portion.request != request]
        )
        for portion in [p for p in self._inside.values() if p.request == request]:
            del self._inside[portion.number]
            self._batch.cancel(portion.number)

    def step(self) -> list[Written]:
        self._make_way()
        self._fill()
        written = self._batch.step()
        if self._batch.waiting:  # else unbegun portions have room, and will begin
            for portion in self._inside.values():
                portion.stood += 1
        return list(self._new_tokens(written))

    def __len__(self) -> int:
        return len(self._requests)

    @property
    def waiting(self) -> int:
        behind = {portion.request for of in self._waiting.values() for portion in of}
        return len(behind | {portion.request for portion in self._inside.values() if not portion.begun})

    def _begin(self, portion: _Portion) -> None:
        request = self._requests[portion.request]
        sampling = replace(request.sampling, n=len(portion.samples))
        first = request.first + portion.samples.start
        self._batch.owner = request.tenant
        portion.number = self._batch.add(request.prompt, sampling, first=first, **request.more)
        self._inside[portion.number] = portion

    def _wait(self, tenant: str, portions: list[_Portion]) -> None:
        self._waiting.pop(tenant, None)
        if portions:
            self._waiting[tenant] = portions

    def _fill(self) -> None:
        """Begin portions, unless some already wait for room in vain."""
        if any(portion.stood and not portion.begun for portion in self._inside.values()):
            return
        for _ in range(AT_ONCE):
            if not self._waiting:
                return
            tenant = self._shares.next(self._waiting)
            self._shares.charge(tenant, 1)
            portion, *others = self._waiting[tenant]
            self._wait(tenant, others)
            self._begin(portion)

    def _make_way(self) -> None:
        """Drop portions of others if a tenant without room waits."""
        begun: dict[str, list[_Portion]] = {}
        for portion in self._inside.values():
            begun.setdefault(self._requests[portion.request].tenant, []).append(portion)
        starving = [tenant for tenant, of in begun.items() if not any(p.begun for p in of) and any(p.stood for p in of)]
        if not starving:
            return
        rich = {tenant: of for tenant, of in begun.items() if sum(portion.begun for portion in of) > 1}
        for tenant, of in rich.items():  # unbegun portions block those who starve, and lose nothing
            for portion in [p for p in of if not p.begun]:
                self._give_up(tenant, portion)
        if rich:
            tenant = max(rich, key=lambda name: sum(len(portion.samples) for portion in rich[name] if portion.begun))
            self._give_up(tenant, [portion for portion in rich[tenant] if portion.begun][-1])

    def _give_up(self, tenant: str, portion: _Portion) -> None:
        """Put a portion back; its unfinished samples will be sampled again."""
        del self._inside[portion.number]
        self._batch.cancel(portion.number)
        request = self._requests[portion.request]
        again: list[_Portion] = []
        for sample in portion.samples:
            if sample in portion.done:
                continue
            request.ahead[sample] = 0
            if again and again[-1].samples.stop == sample:
                again[-1].samples = range(again[-1].samples.start, sample + 1)
            else:
                again.append(_Portion(portion.request, range(sample, sample + 1)))
        self._wait(tenant, again + self._waiting.get(tenant, []))

    def _new_tokens(self, written: Sequence[Written]) -> Iterator[Written]:
        """New tokens, by request and sample."""
        for token in written:
            portion = self._inside[token.request]
            portion.begun = True
            request, sample = self._requests[portion.request], portion.samples.start + token.sample
            request.ahead[sample] = request.ahead.get(sample, 0) + 1
            if token.completion is not None:
                portion.done.add(sample)
                if len(portion.done) == len(portion.samples):
                    del self._inside[portion.number]
                request.left -= 1
                if not request.left:
                    del self._requests[portion.request]
            if request.ahead[sample] > request.told.get(sample, 0):
                request.told[sample] = request.ahead[sample]
                self._shares.charge(request.tenant, 1)
                yield replace(token, request=portion.request, sample=sample)
