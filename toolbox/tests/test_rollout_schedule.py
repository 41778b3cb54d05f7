"""The logical clock of asynchronous runs: staleness within its bound, no prompt lost or repeated, and the same order
whatever takes how long and however often a run is killed."""

from __future__ import annotations

import json
from concurrent.futures import Future
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from finetooth_hooks.examples import Task
from finetooth_hooks.rollouts import Prompt, Rollout, Sampled
from finetooth_hooks.sampling import Sampling
from finetooth_hooks.testing import draws
from finetooth_toolbox.methods.batched import Batches
from finetooth_toolbox.rollouts.drawing import Drawing, Drawn, Prompts
from finetooth_toolbox.rollouts.draws import Draw, Scoring
from finetooth_toolbox.rollouts.schedule import Schedule
from finetooth_toolbox.rollouts.scoring import WeightedReward
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

TOTAL, ROWS, PER_DRAW = 30, 7, 2


class Recording:
    """A sampler that says who asked it for what, and by which weights."""

    capabilities = frozenset({"own_engine"})

    def __init__(self) -> None:
        self.asked: list[tuple[int, tuple[str, ...], int | None]] = []

    def sample(self, engine: Any, prompts: list[Prompt], sampling: Sampling) -> Sampled:
        version = engine.weights_version
        self.asked.append((version, tuple(one.group for one in prompts), sampling.seed))
        one = [Rollout(p.id, p.group, p.tokens, (5,), (-1.0,), (version,), "", "stop") for p in prompts]
        return Sampled(tuple(one))


@dataclass
class Trainer:
    """What a method does with its draws, without an engine: steps on a batch, batches that are passed over.

    Attributes:
        used: of each draw, the weights that drew it and the steps done when it was first trained.
    """

    schedule: Schedule
    useless: frozenset[int]
    steps: int = 0
    left: int = 0
    used: list[tuple[int, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        tokens = [(f"row:{i}", (1, 2)) for i in range(ROWS)]
        prompts = Prompts(ROWS, {id_: Task("?") for id_, _ in tokens}, tokens)
        self.sampler = Recording()
        options: Any = SimpleNamespace(max_completion_length=1, temperature=1.0, top_k=0, top_p=1.0, num_generations=1,
                                       dynamic_sampling=False)  # fmt: skip
        context: Any = SimpleNamespace(
            train=SimpleNamespace(batch_size=PER_DRAW), generator=lambda *keys: np.random.default_rng(keys[1])
        )
        self.batches = Batches(ROWS, PER_DRAW, 0, 100 * TOTAL, 3)
        reward: Any = WeightedReward("one", lambda prompts, answers, columns: [1.0] * len(answers), 1.0, beside=False)
        self.drawing = Drawing(context, options, prompts, self.batches, self.sampler, [reward], self.schedule)
        self.indices = iter(self.batches)

    @property
    def engine(self) -> Any:
        return SimpleNamespace(weights_version=self.steps)

    def step(self) -> None:
        """One optimizer step, as `RolloutMethod.steps` takes it."""
        while self.left == 0:
            drawn = Drawn()
            assert self.drawing.batch(self.engine, self.indices, drawn)
            self.used.append((drawn.rollouts[0].versions[0], self.steps))
            if len(self.used) - 1 not in self.useless:
                self.left = self.schedule.per_batch
        self.drawing.go_ahead(self.engine, self.indices, left=self.left, remaining=TOTAL - self.steps)
        self.left, self.steps = self.left - 1, self.steps + 1

    def resumed(self) -> Trainer:
        """Another one, from what a checkpoint has."""
        state = json.loads(json.dumps([dict(self.batches.state()), self.drawing.state()]))
        other = Trainer(self.schedule, self.useless, self.steps, self.left, list(self.used))
        other.sampler.asked = self.sampler.asked
        other.batches.restore(state[0])
        other.indices = iter(other.batches)
        other.drawing.take(state[1])
        return other


class Clock(RuleBasedStateMachine):
    """Steps and kills in any order, against the same run without a kill."""

    @initialize(
        ahead=st.integers(0, 4), per_batch=st.integers(1, 3), staleness=st.none() | st.integers(0, 9),
        useless=st.frozensets(st.integers(0, 12), max_size=6),
    )  # fmt: skip
    def begin(self, ahead: int, per_batch: int, staleness: int | None, useless: frozenset[int]) -> None:
        schedule = Schedule(ahead, per_batch, staleness)
        self.trainer, self.whole = Trainer(schedule, useless), Trainer(schedule, useless)

    @rule()
    def step(self) -> None:
        if self.trainer.steps < TOTAL:
            self.trainer.step()
            self.whole.step()

    @rule()
    def kill(self) -> None:
        self.trainer = self.trainer.resumed()

    @invariant()
    def never_staler_than_the_bound(self) -> None:
        if hasattr(self, "trainer"):
            bound = self.trainer.schedule.bound
            assert all(0 <= at - version <= bound for version, at in self.trainer.used)

    @invariant()
    def the_same_run(self) -> None:
        if hasattr(self, "trainer"):
            assert self.trainer.sampler.asked == self.whole.sampler.asked
            assert self.trainer.used == self.whole.used

    def teardown(self) -> None:
        """What was asked is the order of the prompts from its beginning: none lost, none twice."""
        if hasattr(self, "trainer"):
            order = iter(Batches(ROWS, PER_DRAW, 0, 100 * TOTAL, 3))
            for number, (_, groups, _) in enumerate(self.trainer.sampler.asked, 1):
                assert groups == tuple(f"row:{i}@{number}" for i in next(order))


TestClock = Clock.TestCase
TestClock.settings = settings(max_examples=draws(40), stateful_step_count=40, deadline=None)


def test_ten_thousand_schedules_are_within_their_bounds() -> None:
    """The rule alone, with batches that end early and are passed over at random; and it does go ahead: where nothing is
    passed over, `ahead` draws wait as soon as the bound allows them."""
    random, fullest = np.random.default_rng(0), 0
    for _ in range(10_000):
        schedule = Schedule(int(random.integers(0, 6)), int(random.integers(1, 5)),
                            None if random.random() < 0.3 else int(random.integers(0, 25)))  # fmt: skip
        waiting: list[int] = []
        left = 0
        for step in range(20):
            while left == 0:
                version = waiting.pop(0) if waiting else step
                assert 0 <= step - version <= schedule.bound
                left = int(random.integers(0, schedule.per_batch + 1))
            while schedule.begins(left=left, waiting=len(waiting), remaining=20 - step):
                waiting.append(step)
            assert len(waiting) <= schedule.ahead
            fullest = max(fullest, len(waiting))
            left -= 1
    assert fullest == 5


@pytest.mark.parametrize(("staleness", "expected"), [(None, [0, 0, 0, 1, 2, 3]), (1, [0, 0, 1, 2, 3, 4]),
                                                     (0, [0, 1, 2, 3, 4, 5])])  # fmt: skip
def test_weights_that_draw_are_those_of_the_rule(staleness: int | None, expected: list[int]) -> None:
    """Two ahead, a step a batch: by hand."""
    trainer = Trainer(Schedule(2, 1, staleness), frozenset())
    for _ in range(6):
        trainer.step()
    assert [version for version, _ in trainer.used] == expected


def test_nothing_is_drawn_for_after_the_end() -> None:
    trainer = Trainer(Schedule(3, 2), frozenset())
    for _ in range(TOTAL):
        trainer.step()
    assert len(trainer.sampler.asked) == TOTAL // 2 == len(trainer.used) and not trainer.drawing.state()


def test_rewards_that_were_not_begun_when_a_run_stopped_are_made_when_asked_for() -> None:
    """Cancelled with the thread; a run that goes on in the same process asks again."""
    one = Rollout("a", "a", (1,), (5,), (-1.0,), (0,), "", "stop")
    scoring = Scoring(lambda draw: [*draw.episodes[0]], beside=True)
    draw = Draw(0.0, ((one,),))
    draw._scores = Future()
    draw._scores.cancel()
    assert scoring.end(draw) == [one]
    scoring.begin(draw)
    assert scoring.end(draw) == [one]
    scoring.stop()
