"""Shares of a step's data: whole groups, all of them, as even as they go; and handles of them."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from threading import Barrier
from typing import Any

import numpy as np
from finetooth_hooks import (
    Backward,
    Completion,
    Datum,
    EngineBase,
    EngineError,
    Forward,
    Generated,
    Handle,
    Sampling,
    Stepped,
)
from finetooth_steps.sharding import ShardedEngine, prompt_shares, shares
from hypothesis import given
from hypothesis import strategies as st


@given(st.lists(st.integers(1, 3), max_size=9), st.integers(1, 5))
def test_shares_are_whole_groups_and_all_of_them(sizes: list[int], world: int) -> None:
    datum = Datum.from_tokens([1, 2, 3])
    data = [replace(datum, group=f"{group}") for group, size in enumerate(sizes) for _ in range(size)]
    found = shares(data, world)
    assert len(found) == world
    assert [at for share in found for at in share] == list(range(len(data)))
    of_ranks = [{data[at].group for at in share} for share in found]
    assert sum(map(len, of_ranks)) == len(sizes)  # no group is at two ranks
    assert max(map(len, of_ranks)) - min(map(len, of_ranks)) <= 1


class Meeting:
    """A line between threads."""

    def __init__(self, rank: int, world: int, barrier: Barrier, given: dict[int, Any]) -> None:
        self.rank, self.world, self._barrier, self._given = rank, world, barrier, given

    def gather(self, value: Any) -> list[Any]:
        self._given[self.rank] = value
        self._barrier.wait(10)
        values = [self._given[rank] for rank in range(self.world)]
        self._barrier.wait(10)
        return values

    def broadcast(self, value: Any) -> Any:
        return self.gather(value)[0]


class Told(EngineBase):
    """Keeps what it is asked for; the log-probability of a target is the number of its datum's tokens."""

    def __init__(self) -> None:
        self.forwards: list[list[str]] = []
        self.backwards: list[tuple[int, Any]] = []

    capabilities = frozenset({"handles", "gradients", "unheard-of"})  # type: ignore[assignment]

    def forward(self, data: Sequence[Datum], loss: Any = None, **how: Any) -> Forward:
        self.forwards.append([f"{datum.id}@{datum.place}" for datum in data])
        outputs = tuple({"logprobs": np.full(len(datum), len(datum), np.float32)} for datum in data)
        return Forward(outputs, targets=len(data), handle=Handle(len(self.forwards), 0))

    def backward(self, handle: Handle, grads: Any = None, *, normalizer: Any = None) -> Backward:
        self.backwards.append((handle.id, None if grads is None else [array.tolist() for array in grads]))
        return Backward(1.0, False)

    def step(self, **how: Any) -> Stepped:
        return Stepped(1, 0.1, 1.0)


def test_a_handle_names_the_shares_of_all_ranks() -> None:
    """Every rank differentiates its own data, with its own gradients of those that the caller gives for all."""
    data = [Datum.from_tokens([1] * size, id=f"row-{size}") for size in (3, 4, 5)]
    grads = [np.full(len(datum), at, np.float32) for at, datum in enumerate(data)]
    barrier, given = Barrier(2), dict[int, Any]()

    def driven(rank: int) -> tuple[Told, Forward, Forward]:
        told = Told()
        engine = ShardedEngine(told, Meeting(rank, 2, barrier, given), slopes=None)  # type: ignore[arg-type]
        assert engine.capabilities == {"handles", "gradients"}
        first = engine.forward(data)
        assert first.handle is not None
        engine.backward(first.handle, grads)
        second = engine.forward(data[:1])
        engine.step()
        third = engine.forward(data[:1])
        assert third.handle is not None
        engine.backward(third.handle)
        return told, first, second

    with ThreadPoolExecutor(2) as threads:
        (one, first, _), (other, *others) = threads.map(driven, range(2))
    assert [output["logprobs"].tolist() for output in first.outputs] == [[2.0] * 2, [3.0] * 3, [4.0] * 4]
    assert first.targets == 3 and [len(of.outputs) for of in others] == [3, 1]
    assert one.forwards == [["row-3@0"], [], []] and other.forwards == [
        ["row-4@1", "row-5@2"],
        ["row-3@3"],
        ["row-3@0"],
    ]
    assert one.backwards == [(1, [[0.0] * 2]), (3, None)]
    assert other.backwards == [(1, [[1.0] * 3, [2.0] * 4]), (3, None)]


@given(st.lists(st.integers(0, 4), max_size=9), st.integers(1, 5))
def test_equal_prompts_are_at_one_rank(prompts: list[int], world: int) -> None:
    places = prompt_shares(prompts, world)
    assert sorted(place for share in places for place in share) == list(range(len(prompts)))
    of_ranks = [{prompts[place] for place in share} for share in places]
    assert sum(map(len, of_ranks)) == len(set(prompts))
    assert max(map(len, of_ranks)) - min(map(len, of_ranks)) <= 1


class Sampler(EngineBase):
    """Counts the samples of equal prompts on, as engines do; a prompt of 9 fails. A score is the sum of the tokens."""

    def __init__(self, *words: str) -> None:
        self.capabilities, self.sampled = frozenset(words), list[list[int]]()  # type: ignore[misc]

    def generate(self, prompts: Sequence[Sequence[int]], sampling: Sampling) -> Generated:
        self.sampled += map(list, prompts)
        if [9] in self.sampled:
            raise EngineError("prompt 0 is a nine")
        seen: dict[int, int] = {}
        completions = []
        for (token,) in prompts:
            seen[token] = seen.get(token, 0) + 1
            completions.append([Completion((token, seen[token]), (), "", "length", 0)])
        return Generated(completions, 10.0 * len(prompts))

    def logprobs(self, data: Sequence[Datum], *, role: str = "policy") -> list[Any]:
        self.sampled += [[len(datum)] for datum in data]
        return [np.full(1, len(datum), np.float32) for datum in data]


def driven(words: tuple[str, ...], call: Any) -> list[Any]:
    """What `call` gives at each of two ranks, or the error; and which prompts or data each rank's engine had."""
    barrier, given = Barrier(2), dict[int, Any]()

    def run(rank: int) -> Any:
        engine = Sampler(*words)
        sharded = ShardedEngine(engine, Meeting(rank, 2, barrier, given), slopes=None)  # type: ignore[arg-type]
        try:
            return call(sharded, rank), engine.sampled
        except EngineError as error:
            return str(error), engine.sampled

    with ThreadPoolExecutor(2) as threads:
        return list(threads.map(run, range(2)))


def test_each_rank_samples_prompts_of_its_own() -> None:
    prompts = [[5], [7], [5], [6], [7]]
    alone = Sampler().generate(prompts, Sampling(max_tokens=2))

    def sample(engine: ShardedEngine, _: int) -> Generated:
        return engine.generate(prompts, Sampling(max_tokens=2))

    (first, of_first), (second, of_second) = driven(("own_prompts",), sample)
    assert first == second == alone and first.flops == second.flops == alone.flops
    assert (of_first, of_second) == ([[5], [5]], [[7], [6], [7]])
    (first, of_first), (second, of_second) = driven((), sample)
    assert first == second == alone and of_first == of_second == prompts


def test_one_prompt_and_what_fails_reach_every_rank() -> None:
    def sample(engine: ShardedEngine, _: int) -> Generated:
        return engine.generate([[9]], Sampling(max_tokens=2))

    (first, of_first), (second, of_second) = driven(("own_prompts",), sample)
    assert "rank 1 failed: prompt 0 is a nine" in first and "prompt 0 is a nine" in second
    assert of_first == [] and of_second == [[9]]


def test_ranks_with_other_prompts_are_refused() -> None:
    given = driven(("own_prompts",), lambda engine, rank: engine.generate([[rank]], Sampling(max_tokens=2)))
    assert all("prompts of 1 tokens" in said and "give every rank the same" in said for said, _ in given)


def test_each_rank_scores_data_of_its_own() -> None:
    data = [Datum.from_tokens([1] * size, id=f"row-{size}") for size in (3, 4, 5)]
    alone = [array.tolist() for array in Sampler().logprobs(data)]
    (first, of_first), (second, of_second) = driven((), lambda engine, _: engine.logprobs(data))
    assert [array.tolist() for array in first] == [array.tolist() for array in second] == alone
    assert of_first + of_second == [[len(datum)] for datum in data] and len(of_first) == 1


def test_the_first_rank_alone_makes_a_call_whose_result_all_get() -> None:
    called: list[int] = []

    def first(engine: ShardedEngine, rank: int) -> Any:
        return engine.leads, engine.first(lambda: called.append(rank) or f"of {rank}")

    assert [given for given, _ in driven((), first)] == [(True, "of 0"), (False, "of 0")] and called == [0]

    def fails() -> Any:
        raise EngineError("the judge is not there")

    said = [given for given, _ in driven((), lambda engine, _: engine.first(fails))]
    assert said == ["the judge is not there", "rank 0 failed: the judge is not there"]
