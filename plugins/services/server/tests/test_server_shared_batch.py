"""Tenants share the room of a running batch, and everybody's samples are those that they get alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from finetooth_hooks import Completion, EngineError, Sampling
from finetooth_hooks.continuous import Written
from finetooth_server.batches.shared_batch import PORTION, SharedBatch
from hypothesis import given, settings
from hypothesis import strategies as st


def token_of(prompt: Sequence[int], seed: int, sample: int, index: int) -> int:
    return hash((tuple(prompt), seed, sample, index)) % 1000


def length_of(sampling: Sampling, sample: int) -> int:
    return 1 + (sampling.seed + 7 * sample) % sampling.max_tokens


@dataclass
class Row:
    request: int
    prompt: list[int]
    sampling: Sampling
    number: int
    sample: int
    tokens: list[int]


class Fake:
    """Room for some rows; requests begin in their order, whole.

    Attributes:
        owners: of each request.
    """

    owner = ""

    def __init__(self, room: int) -> None:
        self.room, self.rows, self.queue, self.count = room, list[Row](), list[list[Row]](), 0
        self.seen: list[int] = []
        self.owners: list[str] = []

    def add(self, prompt: Sequence[int], sampling: Sampling, *, first: int = 0, adapter: Any = None) -> int:
        if not prompt:
            raise EngineError("prompt 0 is empty", action="begin it with a token")
        number, self.count = self.count, self.count + 1
        self.owners.append(self.owner)
        self.queue.append([Row(number, list(prompt), sampling, first + n, n, []) for n in range(sampling.n)])
        return number

    def cancel(self, request: int) -> None:
        self.rows = [row for row in self.rows if row.request != request]
        self.queue = [rows for rows in self.queue if rows[0].request != request]

    def __len__(self) -> int:
        return len({row.request for row in self.rows}) + len(self.queue)

    @property
    def waiting(self) -> int:
        return len(self.queue)

    def step(self) -> list[Written]:
        while self.queue and (not self.rows or len(self.rows) + len(self.queue[0]) <= self.room):
            self.rows += self.queue.pop(0)
        found = []
        for row in self.rows:
            row.tokens.append(token_of(row.prompt, row.sampling.seed, row.number, len(row.tokens)))
            ends = len(row.tokens) == length_of(row.sampling, row.number)
            completion = Completion(tuple(row.tokens), tuple(0.0 for _ in row.tokens), "", "stop", 0) if ends else None
            found.append(Written(row.request, row.sample, row.tokens[-1], 0.0, completion))
        self.rows = [row for row in self.rows if len(row.tokens) < length_of(row.sampling, row.number)]
        return found


ASKED = st.tuples(st.sampled_from("abc"), st.integers(1, 80), st.integers(1, 30), st.integers(0, 5), st.integers(0, 9))


@settings(max_examples=80, deadline=None)
@given(st.lists(ASKED, min_size=1, max_size=8), st.integers(1, 64), st.sets(st.integers(0, 7), max_size=2))
def test_every_sample_is_told_once_and_is_the_one_that_it_is_alone(
    asked: list[Any], room: int, cancelled: set[int]
) -> None:
    batch = SharedBatch(Fake(room))
    told: dict[tuple[int, int], list[int]] = {}
    ended: dict[tuple[int, int], Completion] = {}

    def step() -> None:
        for one in batch.step():
            told.setdefault((one.request, one.sample), []).append(one.token)
            if one.completion is not None:
                assert (one.request, one.sample) not in ended
                ended[one.request, one.sample] = one.completion

    requests = []
    for tenant, n, longest, seed, steps in asked:
        batch.tenant = tenant
        requests.append(batch.add([1, 2], Sampling(n=n, max_tokens=longest, seed=seed)))
        for _ in range(steps):
            step()
    for place in cancelled & set(range(len(requests))):
        batch.cancel(requests[place])
    for _ in range(20_000):
        if not len(batch):
            break
        step()
    assert not len(batch) and not batch.waiting and not len(batch._batch)
    for place, (request, (_, n, longest, seed, _)) in enumerate(zip(requests, asked, strict=True)):
        if place in cancelled:
            continue
        sampling = Sampling(n=n, max_tokens=longest, seed=seed)
        for sample in range(n):
            want = [token_of([1, 2], seed, sample, index) for index in range(length_of(sampling, sample))]
            assert told[request, sample] == want == list(ended[request, sample].tokens)


@pytest.mark.parametrize("room", [PORTION * 2, PORTION * 4, 200])
def test_a_thousand_samples_do_not_keep_one_waiting(room: int) -> None:
    batch = SharedBatch(Fake(room))
    batch.tenant = "many"
    batch.add([1], Sampling(n=1000, max_tokens=400, seed=1))
    for _ in range(20):
        batch.step()
    for late in ("one", "two"):
        batch.tenant = late
        small = batch.add([2], Sampling(n=1, max_tokens=1, seed=0))
        steps = 0
        while not any(one.request == small for one in batch.step()):
            steps += 1
            assert steps <= 3


def test_two_who_want_all_room_both_go_on() -> None:
    batch, had = SharedBatch(Fake(PORTION * 4)), {0: 0, 1: 0}
    for tenant in ("one", "two"):
        batch.tenant = tenant
        batch.add([1], Sampling(n=300, max_tokens=50, seed=len(tenant)))
    while len(batch) == 2:
        for one in batch.step():
            had[one.request] += 1
    assert min(had.values()) > 0.6 * max(had.values())


def test_what_the_engine_refuses_is_refused_and_leaves_nothing() -> None:
    batch = SharedBatch(Fake(4))
    with pytest.raises(EngineError, match="is empty"):
        batch.add([], Sampling(n=40))
    assert not len(batch) and batch.step() == []


def test_a_portion_that_begins_later_is_still_its_tenants() -> None:
    """So that prompts of one tenant are not continued for another."""
    batch = SharedBatch(fake := Fake(PORTION))
    for tenant, n in (("a", 3 * PORTION), ("b", 2)):
        batch.tenant = tenant
        batch.add([3], Sampling(max_tokens=2, n=n, seed=1))
    while len(batch):
        batch.step()
    assert sorted(fake.owners) == ["a"] * 3 + ["b"] and fake.owners[0] == "a"
