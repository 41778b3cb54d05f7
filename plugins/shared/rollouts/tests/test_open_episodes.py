"""Episodes in parts: each part by the weights of its moment, the same episodes as whole, and exact after a kill."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest
from finetooth_hooks import Answer, EngineError, Message, Observation
from finetooth_hooks.bases import EnvironmentBase, EpisodeBase
from finetooth_hooks.data.examples import Task
from finetooth_hooks.environments import Turn
from finetooth_hooks.rollouts import Prompt, Rollout, Sampled
from finetooth_hooks.sampling import Sampling
from finetooth_kit import ByteTokenizer
from finetooth_kit.fake_context import PlainRenderer
from finetooth_rollouts.episodes import EpisodeTask, Playing
from finetooth_rollouts.live_episode import LiveEpisode
from finetooth_rollouts.open_episodes import OpenEpisodes
from finetooth_rollouts.stretches import joined

LONGEST, TURNS = 6, 3
TASKS = {name: Task(name) for name in "abcdefgh"}


class Extending(PlainRenderer):
    """Writes every conversation so that it only grows, which it does."""

    extension = True


class Game(EnvironmentBase):
    """Counts turns, and what its episodes are asked.

    Attributes:
        says: what it adds to everything it says.
        calls: answers that it gave.
        closed: episodes that were let go.
    """

    capabilities = frozenset({"seeded"})

    def __init__(self) -> None:
        self.says, self.calls, self.closed = "", 0, 0

    def episode(self, task: Task, seed: int) -> Played:
        return Played(self, task, seed)


class Played(EpisodeBase):
    def __init__(self, game: Game, task: Task, seed: int) -> None:
        self.game, self.task, self.seed, self.turn = game, task, seed, 0

    def begin(self) -> Observation:
        return Observation((Message("user", f"{self.task.prompt}{self.seed}"),), stop=("##",))

    def answer(self, turn: Turn) -> Answer:
        self.turn, self.game.calls = self.turn + 1, self.game.calls + 1
        if "boom" in turn.text:
            raise OSError("the board is gone")
        said = Observation((Message("user", f"{len(turn.tokens)}{self.game.says}"),), stop=("##",))
        return Answer(None if len(turn.tokens) == 3 else said, len(turn.tokens) / 8, {"calls": 1.0})

    def close(self) -> None:
        self.game.closed += 1


class Writing:
    """Writes what follows from all that was read, token by token, whatever the stretches: every stretch goes on where
    the one before it ended. Log-probabilities and versions say what wrote a token."""

    capabilities = frozenset({"own_engine"})

    def __init__(self, end: int) -> None:
        self.end, self.asked = end, list[tuple[int, int, int]]()

    def sample(self, engine: Any, prompts: Sequence[Prompt], sampling: Sampling) -> Sampled:
        found = [self._one(engine.weights_version, one, sampling) for one in prompts for _ in range(sampling.n)]
        self.asked.append((engine.weights_version, len(prompts), sampling.max_tokens))
        return Sampled(tuple(found), 1.0)

    def _one(self, version: int, prompt: Prompt, sampling: Sampling) -> Rollout:
        tokens: list[int] = []
        text = ""
        while len(tokens) < sampling.max_tokens and self.end not in tokens:
            draw = Random(repr((*prompt.tokens, *tokens)))
            tokens.append(self.end if draw.random() < 0.2 else draw.choice(b"ab#"))
            text = bytes(one for one in tokens if one != self.end).decode()
            if "##" in text:
                break
        ended = tokens[-1] == self.end or "##" in text
        return Rollout(
            prompt.id, prompt.group, prompt.tokens, tuple(tokens), tuple(-1.0 - one / 300 for one in tokens),
            (version,) * len(tokens), text.partition("##")[0], "stop" if ended else "length",
        )  # fmt: skip


def engine_of(version: int) -> Any:
    return SimpleNamespace(weights_version=version, first=lambda call: call())


class Table:
    """An environment, a policy, and episodes of eight rows, two of each."""

    def __init__(self) -> None:
        tokenizer = ByteTokenizer()
        renderer = Extending(tokenizer)
        context: Any = SimpleNamespace(
            renderer=renderer,
            tokenizer=tokenizer,
            train=SimpleNamespace(max_length=400),
            facts=SimpleNamespace(max_positions=0),
        )
        self.game, self.sampler = Game(), Writing(renderer.stop_ids[0])
        self.playing = Playing(context, self.game, self.sampler, name="game", most_turns=TURNS, limit=60)
        self.asked = [EpisodeTask(name, f"{name}@1", task, 3 + i) for i, (name, task) in enumerate(TASKS.items())]

    def whole(self) -> list[list[Rollout]]:
        """The episodes, played at once by weights of no step."""
        return self.playing.play(engine_of(0), self.asked, Sampling(LONGEST, n=2), lambda turn: 0).episodes

    def part(self, episodes: OpenEpisodes, version: int, stretch: int = 2) -> None:
        self.playing.go_on(engine_of(version), episodes, Sampling(LONGEST, n=2), stretch, lambda part, call: part)

    def again(self, episodes: OpenEpisodes) -> OpenEpisodes:
        """From what a checkpoint has."""
        return self.playing.again(engine_of(0), json.loads(json.dumps(episodes.state())), TASKS)


def without_versions(episodes: Any) -> list[Any]:
    return [[(one.prompt, one.tokens, one.logprobs, one.own, one.text, one.outcome, one.reward, one.metrics)
             for one in of] for of in episodes]  # fmt: skip


@pytest.mark.parametrize("stretch", [1, 2, 4, LONGEST, 0])
def test_in_parts_they_are_what_they_are_at_once(stretch: int) -> None:
    """Tokens, what the environment said and gave, how they ended: also where a text that ends a turn begins in one part
    and ends in the next. Versions are those of the parts."""
    whole, table = Table().whole(), Table()
    assert {one.outcome for of in whole for one in of} >= {"stop", "length", "turns"}
    assert any("##" in one.transcript for of in whole for one in of)
    episodes, version = table.playing.open(engine_of(0), table.asked, 2), 0
    while episodes.going:
        table.part(episodes, version, stretch)
        version += 1
    assert without_versions(episodes.episodes()) == without_versions(whole)
    own = [[v for one in of for v in one.versions if v >= 0] for of in episodes.episodes()]
    assert all(of == sorted(of) for of in own)
    assert max(len(set(of)) for of in own) > (1 if stretch in (0, LONGEST) else 2)
    if stretch == 2:  # no more than two tokens by the same weights
        assert all(of.count(v) <= 2 for of in own for v in of)
    assert episodes.turns == table.game.calls


def test_a_kill_between_any_two_parts_changes_nothing() -> None:
    """The environment is told again what was written, no more, and only by episodes that go on."""
    table = Table()
    episodes, states = table.playing.open(engine_of(0), table.asked, 2), list[Any]()
    while episodes.going:
        states.append(json.loads(json.dumps(episodes.state())))
        table.part(episodes, len(states) - 1, 1)
    wanted = episodes.episodes()
    assert len(states) > 6
    for at, state in enumerate(states):
        other = Table()
        resumed = other.playing.again(engine_of(0), state, TASKS)
        assert other.game.calls == sum(len(one["turns"]) for one in state["episodes"] if "turns" in one)
        for version in range(at, len(states)):
            other.part(resumed, version, 1)
            resumed = other.again(resumed) if version % 3 == 0 else resumed
        assert resumed.episodes() == wanted and resumed.turns == episodes.turns


def test_groups_that_go_on_are_parted_from_those_that_do_not() -> None:
    table = Table()
    episodes = table.playing.open(engine_of(0), table.asked, 2)
    table.part(episodes, 0)
    while len(episodes.parted()[0]) == 0:
        table.part(episodes, 5)
    done, going = episodes.parted()
    assert len(done) + len(going) == 16 and len(done) % 2 == 0 and not done.going and going.oldest == 0
    assert {of[0].group for of in done.episodes()}.isdisjoint(of[0].group for of in going.episodes())
    assert len(table.again(going)) == len(going)


def test_an_environment_that_says_something_else_is_named() -> None:
    table = Table()
    episodes = table.playing.open(engine_of(0), table.asked, 2)
    while not any(one.turns for one in episodes.going):
        table.part(episodes, 0)
    table.game.says = "!"
    with pytest.raises(EngineError, match=r"method\.environment: game: an episode of \w cannot be played again.*else"):
        table.again(episodes)
    assert table.game.closed == len(episodes.going)


def rollout(text: str, outcome: Any, prompt: tuple[int, ...] = (1,), version: int = 0) -> Rollout:
    tokens = tuple(text.encode())
    return Rollout("a", "g", prompt, tokens, (-1.0,) * len(tokens), (version,) * len(tokens), text, outcome)


@pytest.mark.parametrize(
    ("second", "tokens", "text", "outcome"),
    [
        ("#bb", b"a##", "a", "stop"),
        ("bb", b"a#bb", "a#bb", "length"),
        ("bb##", b"a#bb##", "a#bb", "stop"),
    ],
)
def test_a_text_that_ends_a_turn_may_begin_in_the_part_before(
    second: str, tokens: bytes, text: str, outcome: str
) -> None:
    """What was written behind it goes, with its log-probabilities and versions."""
    context: Any = SimpleNamespace(tokenizer=ByteTokenizer(), renderer=SimpleNamespace(stop_ids=()))
    further = rollout(second, "stop" if "##" in second else "length", version=1)
    one = joined(context, rollout("a#", "length"), further, stop=("##",))
    assert (bytes(one.tokens), one.text, one.outcome) == (tokens, text, outcome)
    assert one.versions == (0, 0) + (1,) * (len(tokens) - 2) and len(one.logprobs) == len(tokens)


def test_an_answer_that_others_wrote_a_part_of_is_not_continued() -> None:
    """Which of its tokens train would be lost."""
    context: Any = SimpleNamespace(tokenizer=ByteTokenizer(), renderer=SimpleNamespace(stop_ids=()))
    whole, part = rollout("ab", "length"), replace(rollout("cd", "length"), own=(True, False))
    for begun, further in ((whole, part), (part, whole)):
        with pytest.raises(EngineError, match=r"method.partial_rollouts: .* tokens that the policy did not write"):
            joined(context, begun, further)


def test_what_an_episode_is_of_is_all_that_a_checkpoint_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one that goes on: row, group, seed, key, and what the policy wrote."""
    table = Table()
    episodes = table.playing.open(engine_of(0), table.asked, 2)
    table.part(episodes, 0)
    state: Mapping[str, Any] = episodes.state()
    live = [one for one in state["episodes"] if "found" not in one]
    assert live and all(set(one) == {"id", "group", "seed", "key", "turns", "begun", "prompt"} for one in live)
    assert isinstance(episodes.going[0], LiveEpisode)
