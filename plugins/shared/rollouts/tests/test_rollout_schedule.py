"""The logical clock of asynchronous runs: staleness within its bound, no prompt lost or repeated, and the same order
whatever takes how long and however often a run is killed."""

from __future__ import annotations

import json
from concurrent.futures import Future
from dataclasses import dataclass, field
from random import Random
from types import SimpleNamespace
from typing import Any
from zlib import crc32

import numpy as np
import pytest
from finetooth_hooks.data.examples import Task
from finetooth_hooks.rollouts import Prompt, Rollout, Sampled
from finetooth_hooks.sampling import Sampling
from finetooth_kit import draws
from finetooth_methods.batched import Batches
from finetooth_rollouts.drawing import Drawing
from finetooth_rollouts.drawn import Drawn
from finetooth_rollouts.draws import Draw, Scoring
from finetooth_rollouts.options import RolloutOptions
from finetooth_rollouts.prompts import Prompts
from finetooth_rollouts.schedule import Schedule
from finetooth_rollouts.scoring import WeightedReward
from hypothesis import given as drawn_for
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

TOTAL, ROWS, PER_DRAW, LONGEST, STOP = 30, 7, 2, 6, 9


def length_of(group: str, first: int) -> int:
    """Tokens of an answer that nothing cuts off."""
    return Random(f"{group}/{first}").randrange(1, LONGEST + 3)


class Recording:
    """A sampler that says who asked it for what, and by which weights. Answers have as many tokens as their groups say,
    and end by themselves or are cut off."""

    capabilities = frozenset({"own_engine"})

    def __init__(self) -> None:
        self.asked: list[tuple[int, tuple[str, ...], tuple[int, ...], int | None]] = []

    def sample(self, engine: Any, prompts: list[Prompt], sampling: Sampling) -> Sampled:
        version = engine.weights_version
        written = tuple(len(one.tokens) - 2 for one in prompts)
        self.asked.append((version, tuple(one.group for one in prompts), written, sampling.seed))
        return Sampled(tuple(self._answer(p, sampling.max_tokens, version, k) for p in prompts
                             for k in range(sampling.n)))  # fmt: skip

    def _answer(self, prompt: Prompt, most: int, version: int, k: int) -> Rollout:
        begun = list(prompt.tokens[2:])
        key = begun[0] if begun else 10 + k  # the first token says which one of its group it is
        length = length_of(prompt.group, key)
        whole = [key, *[5] * (min(length, LONGEST) - 1)]
        if length <= LONGEST:
            whole[-1] = STOP if length > 1 else key
        tokens = tuple(whole[len(begun) : len(begun) + most])
        ended = length <= LONGEST and len(begun) + len(tokens) == length
        return Rollout(
            prompt.id, prompt.group, prompt.tokens, tokens, (-1.0,) * len(tokens), (version,) * len(tokens), "",
            "stop" if ended else "length",
        )  # fmt: skip


def rewarded(prompts: Any, answers: list[str], columns: dict[str, Any]) -> list[float]:
    """Rewards that are often all equal, and often all 0."""
    return [float(Random(f"{row}/{tokens}").random() < 0.2)
            for row, tokens in zip(columns["row_id"], columns["completion_ids"], strict=True)]  # fmt: skip


@dataclass
class Trainer:
    """What a method does with its draws, without an engine: steps on a batch, batches that are passed over.

    Attributes:
        used: of each answer that was trained its group, its tokens, the weights that drew each, and the steps done when
            it was trained.
        batches_used: how many batches.
    """

    options: RolloutOptions
    schedule: Schedule
    useless: frozenset[int]
    steps: int = 0
    left: int = 0
    used: list[tuple[str, tuple[int, ...], tuple[int, ...], int]] = field(default_factory=list)
    batches_used: int = 0

    def __post_init__(self) -> None:
        tokens = [(f"row:{i}", (1, 2)) for i in range(ROWS)]
        prompts = Prompts(ROWS, {id_: Task("?") for id_, _ in tokens}, tokens)
        self.sampler = Recording()
        context: Any = SimpleNamespace(
            train=SimpleNamespace(batch_size=PER_DRAW),
            generator=lambda *keys: np.random.default_rng(crc32(repr(keys).encode())),
            tokenizer=SimpleNamespace(decode=str),
            renderer=SimpleNamespace(stop_ids=frozenset({STOP})),
        )
        self.batches = Batches(ROWS, PER_DRAW, 0, 100 * TOTAL, 3)
        reward: Any = WeightedReward("one", rewarded, 1.0, concurrent=False)
        self.drawing = Drawing(context, self.options, prompts, self.batches, self.sampler, [reward], self.schedule)
        self.indices = iter(self.batches)

    @property
    def engine(self) -> Any:
        return SimpleNamespace(weights_version=self.steps, leads=True, first=lambda call: call())

    def step(self) -> None:
        """One optimizer step, as `RolloutMethod.steps` takes it."""
        while self.left == 0:
            drawn = Drawn()
            assert self.drawing.batch(self.engine, self.indices, drawn, remaining=TOTAL - self.steps)
            self.used += [(one.group, one.tokens, one.versions, self.steps) for one in drawn.rollouts]
            self.batches_used += 1
            if self.batches_used - 1 not in self.useless:
                self.left = self.schedule.per_batch
        self.drawing.go_ahead(self.engine, self.indices, left=self.left, remaining=TOTAL - self.steps)
        self.left, self.steps = self.left - 1, self.steps + 1

    def resumed(self) -> Trainer:
        """Another one, from what a checkpoint has."""
        state = json.loads(json.dumps([dict(self.batches.state()), self.drawing.state()]))
        other = Trainer(
            self.options, self.schedule, self.useless, self.steps, self.left, list(self.used), self.batches_used
        )
        other.sampler.asked = self.sampler.asked
        other.batches.restore(state[0])
        other.indices = iter(other.batches)
        other.drawing.take(state[1])
        assert other.drawing.state() == state[1]  # a run may be saved before its first step
        other.drawing.begin(other.engine)
        return other


def trainer_of(schedule: Schedule, useless: frozenset[int] = frozenset(), **options: Any) -> Trainer:
    given = {"prefetch": schedule.ahead, "num_generations": 2, "max_completion_length": LONGEST, **options}
    if not schedule.ahead:
        given |= {"partial_rollouts": 0, "partial_groups": False}
    return Trainer(RolloutOptions(**given), schedule, useless)


class Clock(RuleBasedStateMachine):
    """Steps and kills in any order, against the same run without a kill."""

    @initialize(
        ahead=st.integers(0, 4), per_batch=st.integers(1, 3), staleness=st.none() | st.integers(0, 9),
        useless=st.frozensets(st.integers(0, 12), max_size=6), stretch=st.integers(0, LONGEST + 1),
        late=st.booleans(), replay=st.integers(0, 3), reroll=st.integers(0, 2), streaming=st.integers(0, 2),
        every=st.integers(1, 5),
    )  # fmt: skip
    def begin(
        self, ahead: int, per_batch: int, staleness: int | None, useless: frozenset[int], stretch: int, late: bool,
        replay: int, reroll: int, streaming: int, every: int,
    ) -> None:  # fmt: skip
        schedule = Schedule(ahead, per_batch, staleness, late and stretch > 0 and ahead > 0, every)
        options = {
            "partial_rollouts": stretch, "partial_groups": late and stretch > 0, "replay_groups": replay,
            "replay_staleness": 7, "reroll_groups": reroll, "reroll_start": 0.0, "streaming_groups": streaming,
        }  # fmt: skip
        self.trainer, self.whole = (trainer_of(schedule, useless, **options) for _ in range(2))

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
        """Of a group that is trained for the first time that of the schedule, of one that comes again its own; each
        group comes twice at most."""
        if not hasattr(self, "trainer"):
            return
        trained: dict[str, set[int]] = {}
        for group, _, versions, at in self.trainer.used:
            bound = self.trainer.schedule.bound if trained.setdefault(group, {at}) == {at} else 7
            trained[group].add(at)
            assert all(0 <= at - version <= max(bound, 7 if self.trainer.options.replay_groups else 0)
                       for version in versions)  # fmt: skip
            assert len(trained[group]) <= (2 if self.trainer.options.replay_groups else 1)

    @invariant()
    def the_same_run(self) -> None:
        if hasattr(self, "trainer"):
            assert self.trainer.sampler.asked == self.whole.sampler.asked
            assert self.trainer.used == self.whole.used

    @invariant()
    def answers_are_whole(self) -> None:
        """Whatever the stretches, each answer is what it would be in one."""
        if hasattr(self, "trainer"):
            for group, tokens, _, _ in self.trainer.used:
                length = length_of(group, tokens[0])
                assert len(tokens) == min(length, LONGEST)

    def teardown(self) -> None:
        """What was asked is the order of the prompts from its beginning: none lost, none twice, but for those that are
        asked again on purpose."""
        if not hasattr(self, "trainer"):
            return
        begun = [group for _, groups, written, _ in self.trainer.sampler.asked
                 for group, so_far in zip(groups, written, strict=True) if so_far == 0]  # fmt: skip
        assert len(set(begun)) == len(begun)
        again = self.trainer.options.reroll_groups
        for number, rows in enumerate(Batches(ROWS, PER_DRAW, 0, 100 * TOTAL, 3), 1):
            of = [group for group in begun if group.endswith(f"@{number}")]
            if not of:
                assert len(begun) == sum(len([g for g in begun if g.endswith(f"@{n}")]) for n in range(1, number))
                return
            assert of[: len(rows)] == [f"row:{i}@{number}" for i in rows]
            assert len(of) <= len(rows) + again


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
    trainer = trainer_of(Schedule(2, 1, staleness))
    for _ in range(6):
        trainer.step()
    assert [versions[0] for _, _, versions, _ in trainer.used[:: 2 * PER_DRAW]] == expected


@drawn_for(
    ahead=st.integers(1, 6), per_batch=st.integers(1, 4), staleness=st.none() | st.integers(1, 9),
    every=st.integers(1, 9), kills=st.sets(st.integers(0, TOTAL - 1), max_size=4),
)  # fmt: skip
@settings(max_examples=draws(60), deadline=None)
def test_weights_reach_the_sampler_every_so_many_steps(
    ahead: int, per_batch: int, staleness: int | None, every: int, kills: set[int]
) -> None:
    """Every answer is drawn by weights of a multiple of the interval, and trained within the bound on staleness; a kill
    changes no draw, prompts keep their order, an interval of 1 is none, and what cannot keep it is refused."""
    schedule = Schedule(ahead, per_batch, staleness, every=every)
    given: dict[str, Any] = {"prefetch": ahead, "mini_batches": per_batch, "max_staleness": staleness}
    given["sync_every"] = every
    if every > schedule.bound:
        with pytest.raises(ValueError, match=rf"sync_every is {every}, above .*\(\d+\): lower it"):
            RolloutOptions(**given)
        return
    assert RolloutOptions(**given).sync_every == every
    trainer, plain = trainer_of(schedule), trainer_of(Schedule(ahead, per_batch, staleness))
    for step in range(TOTAL):
        trainer = trainer.resumed() if step in kills else trainer
        trainer.step()
        plain.step()
    assert {version % every for version, *_ in trainer.sampler.asked} == {0}
    assert all(at - versions[0] <= schedule.bound for *_, versions, at in trainer.used)
    assert [answer[:2] for answer in trainer.used] == [answer[:2] for answer in plain.used]
    if every == 1:
        assert trainer.used == plain.used and trainer.sampler.asked == plain.sampler.asked


@pytest.mark.parametrize(("given", "message"), [
    ({"sync_every": 2}, "sync_every is about whole answers that are written ahead: set prefetch"),
    ({"sync_every": 2, "prefetch": 2, "partial_rollouts": 3}, "leave partial_rollouts out"),
    ({"sync_every": 3, "prefetch": 4, "max_staleness": 2}, r"sync_every is 3, above max_staleness \(2\)"),
    ({"sync_every": 3, "prefetch": 2}, r"above the steps that prefetch comes to \(2\)"),
])  # fmt: skip
def test_an_interval_that_cannot_be_kept_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RolloutOptions(**given)


def test_an_answer_goes_on_under_the_weights_of_each_step() -> None:
    """Two tokens a stretch, two batches ahead: by hand. What is not at its end when it is wanted is written to it by
    the weights that train."""
    trainer = trainer_of(Schedule(2, 1), partial_rollouts=2)
    for _ in range(4):
        trainer.step()
    longest = [max((v for _, tokens, v, at in trainer.used if at == step and len(tokens) == LONGEST), default=())
               for step in range(4)]  # fmt: skip
    assert [versions for versions in longest if versions] and set(longest) <= {
        (), (0,) * 6, (0, 0, 1, 1, 1, 1), (0, 0, 1, 1, 2, 2), (1, 1, 2, 2, 3, 3),
    }  # fmt: skip
    assert (1, 1, 2, 2, 3, 3) in longest or (0, 0, 1, 1, 2, 2) in longest


def test_late_groups_are_trained_with_the_next_batch() -> None:
    """Every group that was asked before the last batch is trained, once, whole; and some were late."""
    trainer = trainer_of(Schedule(3, 1, late=True), partial_rollouts=1, partial_groups=True)
    for _ in range(20):
        trainer.step()
    order = [group for group, _, _, _ in trainer.used]
    steps: dict[str, set[int]] = {}
    for group, _, versions, at in trainer.used:
        steps.setdefault(group.partition("@")[2], set()).add(at)
        assert at - min(versions) <= 4
    assert {len(of) for of in steps.values()} == {1, 2}
    assert all(order.count(group) == 2 for group in order)
    done = {group for _, groups, written, _ in trainer.sampler.asked for group in groups if written}
    assert {g for g in done if int(g.partition("@")[2]) <= 18} <= set(order)


def test_groups_that_teach_nothing_give_way_to_kept_ones_once() -> None:
    """Whatever is in a batch differs in its rewards as long as there is something kept; nothing kept is alike, and
    nothing older than the bound."""
    trainer = trainer_of(Schedule(0, 1), replay_groups=2, replay_staleness=5)
    for _ in range(25):
        trainer.step()
    trained: dict[str, list[int]] = {}
    for group, _, versions, at in trainer.used:
        trained.setdefault(group, []).append(at)
        assert at - min(versions) <= 5
    again = {group: sorted(set(at)) for group, at in trained.items() if len(set(at)) > 1}
    assert again and all(len(at) == 2 for at in again.values())


def test_nothing_is_drawn_for_after_the_end() -> None:
    trainer = trainer_of(Schedule(3, 2))
    for _ in range(TOTAL):
        trainer.step()
    assert len(trainer.sampler.asked) == TOTAL // 2 == trainer.batches_used
    assert not trainer.drawing.state()["waiting"]


def test_rewards_that_were_not_begun_when_a_run_stopped_are_made_when_asked_for() -> None:
    """Cancelled with the thread; a run that goes on in the same process asks again."""
    one = Rollout("a", "a", (1,), (5,), (-1.0,), (0,), "", "stop")
    scoring = Scoring(lambda episodes: [*episodes[0]], concurrent=True)
    draw = Draw(0.0, ((one,),))
    draw._scores = [Future()]
    draw._scores[0].cancel()
    assert scoring.end(draw) == [one]
    scoring.begin(draw)
    assert scoring.end(draw) == [one]
    scoring.stop()


def test_of_several_ranks_the_first_one_judges() -> None:
    """A judge may be a server that answers two requests in two ways, and costs something."""
    judged: list[int] = []

    def score(episodes: Any) -> list[Any]:
        judged.append(len(episodes))
        return []

    scoring = Scoring(score, concurrent=True)
    scoring.idle = True
    draw = Draw(0.0, ((),))
    scoring.begin(draw)
    scoring.stop()
    assert not judged and not draw._scores
    scoring.idle = False
    scoring.begin(draw)
    assert scoring.end(draw) == [] and judged == [1]
    scoring.stop()
