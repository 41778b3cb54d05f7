"""A running batch over ranks: each writes its share of the samples, and all get every token."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

from finetooth_hooks import Completion, EngineError, Sampling
from finetooth_hooks.continuous import Written
from finetooth_steps.divided_batch import DividedBatch

sys.path.insert(0, str(Path(__file__).parent))
from test_sharding import Meeting


class Batch:
    """Writes at most `room` requests at a time. A token is the prompt's first number plus 10 times the sample's number;
    a request ends after `max_tokens`, and a prompt of 9 fails where it is written."""

    owner = ""

    def __init__(self, room: int = 9) -> None:
        self.room, self.added, self.left, self.steps = room, list[tuple[list[int], int, int]](), dict[int, Any](), 0
        self.owners = ""

    def add(self, prompt: Sequence[int], sampling: Sampling, *, first: int = 0, adapter: Any = None) -> int:
        if not prompt:
            raise EngineError("prompt is empty")
        number = len(self.added)
        self.added.append((list(prompt), first, sampling.n))
        self.owners += self.owner
        self.left[number] = (prompt[0], first, sampling, list[int]())
        return number

    def cancel(self, request: int) -> None:
        self.left.pop(request, None)

    def __len__(self) -> int:
        return len(self.left)

    @property
    def waiting(self) -> int:
        return sum(not tokens for *_, tokens in self.left.values())

    def step(self) -> list[Written]:
        self.steps += 1
        written = []
        for number, (start, first, sampling, tokens) in list(self.left.items())[: self.room]:
            if start == 9:
                self.left.clear()
                raise EngineError("memory ran out")
            tokens.append(start)
            ends = len(tokens) == sampling.max_tokens
            for sample in range(sampling.n):
                token = start + 10 * (first + sample)
                whole = Completion((token,) * len(tokens), (), "", "length", 0) if ends else None
                written.append(Written(number, sample, token, -1.0, whole))
            if ends:
                del self.left[number]
        return written


def driven(call: Any, world: int = 2, **batch: Any) -> list[tuple[Any, Batch]]:
    """What `call` gives at each rank, or its error; and the batch of each rank's engine."""
    barrier, given = Barrier(world), dict[int, Any]()

    def run(rank: int) -> Any:
        own = Batch(**batch)
        try:
            return call(DividedBatch(own, Meeting(rank, world, barrier, given))), own  # type: ignore[arg-type]
        except EngineError as error:
            return str(error), own

    with ThreadPoolExecutor(world) as threads:
        return list(threads.map(run, range(world)))


def drained(batch: Any) -> Counter[tuple[int, int, int, tuple[int, ...]]]:
    """All that is written, with the tokens of completions that end."""
    found = Counter[tuple[int, int, int, tuple[int, ...]]]()
    while len(batch):
        for one in batch.step():
            found[one.request, one.sample, one.token, one.completion.tokens if one.completion else ()] += 1
    return found


def test_every_rank_gets_what_one_batch_writes_and_writes_a_share() -> None:
    def requests(batch: Any) -> Any:
        batch.add([1], Sampling(max_tokens=2, n=3))
        batch.add([2], Sampling(max_tokens=3, n=1), first=4)
        assert not any(one.completion for one in batch.step())
        batch.add([3], Sampling(max_tokens=2, n=2))
        return drained(batch), len(batch), batch.step()

    alone = requests(Batch())
    (first, one), (second, other) = driven(requests)
    assert first == second == alone
    samples = [[(prompt[0], first, n) for prompt, first, n in batch.added] for batch in (one, other)]
    # the last request: each rank has two unfinished samples. A rank without any adds one to check it, and drops it
    assert samples == [[(1, 0, 2), (2, 4, 1), (3, 0, 1)], [(1, 2, 1), (2, 4, 1), (3, 1, 1)]]
    assert len(one) == len(other) == 0


def test_requests_have_their_owners_at_every_rank() -> None:
    def requests(batch: Any) -> None:
        for batch.owner in ("a", "b"):
            batch.add([1], Sampling(n=3))

    assert [batch.owners for _, batch in driven(requests)] == ["ab", "ab"]


def test_a_request_goes_where_samples_have_ended() -> None:
    def requests(batch: Any) -> Any:
        batch.add([1], Sampling(max_tokens=9))
        batch.add([2], Sampling(max_tokens=1))
        batch.step()
        batch.add([3], Sampling(max_tokens=1))
        return drained(batch)

    (_, one), (_, other) = driven(requests)
    assert one.steps == other.steps == 9
    assert [prompt for prompt, *_ in one.added] == [prompt for prompt, *_ in other.added] == [[1], [2], [3]]
    assert list(one.left) == list(other.left) == []


def test_a_cancelled_request_leaves_every_rank() -> None:
    def requests(batch: Any) -> Any:
        numbers = [batch.add([start], Sampling(max_tokens=3, n=3)) for start in (1, 2)]
        batch.step()
        batch.cancel(numbers[0])
        batch.cancel(numbers[0])
        batch.cancel(77)
        assert len(batch) == 1
        return drained(batch), numbers

    alone = requests(Batch())
    given = driven(requests)
    assert [found for found, _ in given] == [alone] * 2


def test_what_waits_is_counted_once() -> None:
    """A request that waits at two ranks is one; the first of three begins at both."""

    def requests(batch: Any) -> Any:
        for start in (1, 2, 3):
            batch.add([start], Sampling(max_tokens=2, n=2))
        seen = [batch.waiting]
        while len(batch):
            batch.step()
            seen.append(batch.waiting)
        return seen

    assert (
        [seen for seen, _ in driven(requests, room=1)] == [requests(Batch(room=1))] * 2 == [[3, 2, 2, 1, 1, 0, 0]] * 2
    )


def test_what_fails_at_one_rank_ends_the_batch_at_all() -> None:
    kept = list[Any]()

    def requests(batch: Any) -> Any:
        kept.append(batch)
        batch.add([1], Sampling(max_tokens=2))
        batch.add([9], Sampling(max_tokens=2))
        return batch.step()

    (first, one), (second, other) = driven(requests)
    assert {first, second} == {"rank 1 failed: memory ran out", "memory ran out"}
    assert [len(batch) for batch in (*kept, one, other)] == [0] * 4


def test_a_request_that_is_refused_is_refused_at_every_rank() -> None:
    """Also where none of its samples would be written; no rank waits for another."""
    given = driven(lambda batch: batch.add([], Sampling(max_tokens=2)), world=3)
    assert [said for said, _ in given] == ["prompt is empty"] * 3
