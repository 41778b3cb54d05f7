"""Learning from episodes end to end: what is trained, what failed, and a run that is killed goes on."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import finetooth
import numpy as np
import pytest
from finetooth_hooks import Datum, FinetoothError
from finetooth_rollouts.rollouts_file import read_rollouts

sys.path.insert(0, str(Path(__file__).parents[1] / "torture"))

from killing import differences, left, rewound  # type: ignore[import-not-found]

PLUGIN = '''
"""A game that goes on for some turns, and fails as a row says."""
import threading
from finetooth_hooks import Answer, Environment, EnvironmentBase, EpisodeBase, Message, NoOptions, Observation, hookimpl

STOPS = (2, *range(5, 49152, 3))  # a random model ends a turn soon enough

@hookimpl
def ft_environments():
    yield Environment(name="game", build=f"{__name__}:build")
    yield Environment(name="dice", build=f"{__name__}:build_dice")

def build_dice(options: NoOptions, context):
    return Unseeded()

def build(options: NoOptions, context):
    return Game()

class Game(EnvironmentBase):
    capabilities = frozenset({"seeded", "concurrent"})
    def episode(self, task, seed):
        return Playing(task)

class Unseeded(Game):
    capabilities = frozenset({"concurrent"})

class Playing(EpisodeBase):
    made = 0
    def __init__(self, task):
        Playing.made += 1
        self.task, self.turns, self.number = task, 0, Playing.made
    def begin(self):
        return Observation(tuple(self.task.prompt), stop_ids=STOPS)
    def answer(self, turn):
        self.turns += 1
        fault = self.task.columns.get("fault")
        if fault == "error" and self.number % 3 == 0:
            raise OSError("the board is gone")
        if fault == "hang" and self.number % 3 == 0:
            threading.Event().wait()
        reward = float(sum(c in "aeiou" for c in turn.text))
        if self.turns == 3:
            return Answer(reward=reward, metrics={"turns": 1.0})
        shown = Observation((Message("user", f"Go on, {self.turns}."),), stop_ids=STOPS)
        return Answer(shown, reward, {"turns": 1.0})
'''


@pytest.fixture
def played(recipe: Callable[..., Any], tmp_path: Path) -> Callable[..., Any]:
    """A recipe that learns from episodes; keyword arguments go into its method."""
    (tmp_path / "game.py").write_text(PLUGIN, encoding="utf-8")

    def make(*, rows: Any = None, train: Any = None, renderer: Any = "chatml", **method: Any) -> Any:
        rows = rows or [{"prompt": f"Say {n}.", "number": n, "answer": str(n)} for n in range(1, 9)]
        (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
        return recipe(
            data={"train": str(tmp_path / "rows.jsonl"), "format": "task", "renderer": renderer},
            method={"name": "grpo", "environment": "game", "num_generations": 4, "max_completion_length": 6, **method},
            train={"batch_size": 2, "precision": "fp32", "max_length": 256, "max_steps": 2, **(train or {})},
            evaluate={"evaluators": []},
            plugins=[str(tmp_path / "game.py")],
        )  # fmt: skip

    return make


def closed(one: Any) -> list[tuple[bool, list[int]]]:
    """A rollout's tokens in stretches that the policy wrote, or did not."""
    found: list[tuple[bool, list[int]]] = []
    for token, own in zip(one.tokens, one.own or (True,) * len(one.tokens), strict=True):
        if not found or found[-1][0] != own:
            found.append((own, []))
        found[-1][1].append(token)
    return found


def test_turns_of_an_episode_are_one_sequence(
    played: Callable[..., Any], metrics: Callable[[Path], list[dict[str, float]]]
) -> None:
    """With a renderer that only ever extends: what stands between two turns is the markup's, tokens of turns are those
    drawn, only they have log-probabilities, and those of sampler and trainer are the same."""
    given = played(num_iterations=2, mini_batches=2, temperature=0.8, train={"max_steps": 4})
    finetooth.run(given)
    folder = Path(given["output"])
    rollouts = dict(read_rollouts(folder))[1]
    engine = finetooth.engine({**given, "output": str(folder) + "-again"})
    assert len(rollouts) == 8 and any(one.own for one in rollouts)
    for one in rollouts:
        turns = closed(one)
        assert [own for own, _ in turns] == [True, False, True, False, True][: len(turns)]
        for number, (own, _) in enumerate(turns):
            if not own:
                text = f"<|im_end|>\n<|im_start|>user\nGo on, {(number + 1) // 2}.<|im_end|>\n<|im_start|>assistant\n"
                assert text in one.transcript
        pairs = list(zip(one.own or (True,) * len(one.tokens), one.logprobs, one.versions, strict=True))
        assert all((logprob < 0, version) == ((True, 0) if own else (False, -1)) for own, logprob, version in pairs)
        weights = [0.0] * len(one.prompt) + [float(own) for own, _, _ in pairs]
        datum = Datum.from_tokens([*one.prompt, *one.tokens], weights)
        logits = engine.forward([datum], returns=("logits",), train=False).outputs[0]["logits"][datum.mask]
        z = logits.astype(np.float64) / 0.8
        log_p = z - np.log(np.exp(z - z.max(-1, keepdims=True)).sum(-1, keepdims=True)) - z.max(-1, keepdims=True)
        own_tokens = one.of_policy(one.tokens)
        np.testing.assert_allclose(one.of_policy(one.logprobs), log_p[np.arange(len(z)), list(own_tokens)], atol=1e-4)
    found = metrics(folder)
    assert [one["ratio/min"] == one["ratio/max"] == 1.0 for one in found] == [True, False, False, False]
    assert found[0]["sampling/sampling_logp_difference/max"] < 1e-4
    rewards = np.array([one.reward for one in rollouts]).reshape(2, 4)
    expected = (rewards - rewards.mean(1, keepdims=True)) / (rewards.std(1, ddof=1, keepdims=True) + 1e-4)
    for one, advantage in zip(rollouts, expected.ravel(), strict=True):
        np.testing.assert_allclose(one.advantages, advantage, atol=1e-12)


BASES: dict[str, dict[str, Any]] = {
    "full": {"adapter": "full"},
    "lora": {"adapter": {"name": "lora", "rank": 4}},
    "int8": {"adapter": {"name": "lora", "rank": 4}, "quantization": "int8"},
    "int4": {"adapter": {"name": "lora", "rank": 4}, "quantization": "int4"},
}
DRAWN: dict[str, dict[str, Any]] = {
    "plain": {},
    "temperature": {"temperature": 0.6},
    "top_k": {"top_k": 30},
    "top_p": {"top_p": 0.7, "temperature": 1.2},
    "apart": {"renderer": "hermes", "top_k": 50},
}


@pytest.mark.slow
@pytest.mark.parametrize("drawn", DRAWN)
@pytest.mark.parametrize("base", BASES)
def test_the_first_ratios_of_several_turns_are_one(
    played: Callable[..., Any], base: str, drawn: str, metrics: Callable[[Path], list[dict[str, float]]]
) -> None:
    """Of every token that the policy wrote: with a whole model, an adapter, a quantised base; in one sequence and in
    several; whatever it was drawn among."""
    given = {**played(num_iterations=2, mini_batches=2, train={"max_steps": 2}, **DRAWN[drawn]), **BASES[base]}
    finetooth.run(given)
    found = metrics(Path(given["output"]))
    assert [one["ratio/min"] == one["ratio/max"] == 1.0 for one in found] == [True, False]
    assert found[0]["sampling/sampling_logp_difference/max"] < 1e-4


def test_errors_of_the_environment_are_no_rewards(
    played: Callable[..., Any], metrics: Callable[[Path], list[dict[str, float]]]
) -> None:
    """Every third episode breaks: it is left out and counted, the others are judged among themselves."""
    rows = [{"prompt": f"Say {n}.", "fault": "error"} for n in range(1, 9)]
    given = played(rows=rows, train={"max_steps": 1})
    finetooth.run(given)
    folder = Path(given["output"])
    (rollouts,) = dict(read_rollouts(folder)).values()
    (found,) = metrics(folder)
    assert found["environment/errors"] == 8 - len(rollouts) > 0 and found["environment/timeouts"] == 0
    assert found["num_rollouts"] == 8 and all(one.outcome != "error" and not one.failure for one in rollouts)
    again = {**played(rows=rows, environment_failure="fail"), "output": str(folder) + "-again"}
    with pytest.raises(FinetoothError, match=r"method\.environment.*episodes failed.*the board is gone"):
        finetooth.run(again)


def test_a_failure_can_have_a_reward(played: Callable[..., Any]) -> None:
    rows = [{"prompt": f"Say {n}.", "fault": "error"} for n in range(1, 9)]
    given = played(rows=rows, environment_failure=-1.0, train={"max_steps": 1})
    finetooth.run(given)
    (rollouts,) = dict(read_rollouts(Path(given["output"]))).values()
    failed = [one for one in rollouts if one.outcome == "error"]
    assert len(rollouts) == 8 and failed and {one.reward for one in failed} == {-1.0}
    assert all("the board is gone" in one.failure and one.rewards == {"game": None} for one in failed)


@pytest.mark.parametrize("at", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_killed_run_goes_on_bit_for_bit(played: Callable[..., Any], at: int) -> None:
    """Killed with episodes in flight: a batch is trained twice."""
    given = played(num_iterations=2, train={"max_steps": 3})
    given |= {"checkpoint": {"every": 1, "keep_last": 9}}
    finetooth.run(given)
    folder = Path(given["output"])
    whole = rewound(folder, at)
    assert finetooth.resume(folder).steps == 3
    assert differences(left(whole), left(folder)) == []
    assert dict(read_rollouts(whole)) == dict(read_rollouts(folder))


def test_turns_apart_where_the_renderer_writes_them_anew(played: Callable[..., Any]) -> None:
    """Without the property `extension` a turn whose prompt does not begin with the one before it is a rollout of its
    own: all of an episode have its advantage, which is that of episodes among themselves."""
    given = played(renderer="hermes", train={"max_steps": 1})
    finetooth.run(given)
    (rollouts,) = dict(read_rollouts(Path(given["output"]))).values()
    keys = list(dict.fromkeys(one.episode for one in rollouts))
    assert len(keys) == 8 < len(rollouts)
    rewards = np.array([next(one.reward for one in rollouts if one.episode == key) for key in keys], dtype=float)
    of = rewards.reshape(2, 4)
    expected = ((of - of.mean(1, keepdims=True)) / (of.std(1, ddof=1, keepdims=True) + 1e-4)).ravel()
    for one in rollouts:
        assert one.reward == rewards[keys.index(one.episode)]
        np.testing.assert_allclose(one.advantages, expected[keys.index(one.episode)], atol=1e-12)


FIRST_PARTY: dict[str, Any] = {
    "guess_number": {"environment": {"name": "guess_number", "low": 1, "high": 9, "near": 0.5}},
    "calculator": {"environment": "calculator", "renderer": "hermes"},
    "search": {"environment": {"name": "search"}, "renderer": "hermes"},
    "single_turn": {"environment": "single_turn", "rewards": [{"name": "exact_match", "column": "answer"}]},
}


@pytest.mark.parametrize("name", FIRST_PARTY)
def test_first_party_environments_train(
    played: Callable[..., Any], tmp_path: Path, name: str, metrics: Callable[[Path], list[dict[str, float]]]
) -> None:
    """A random model is hardly ever right, so nothing is passed over."""
    settings = dict(FIRST_PARTY[name])
    if name == "search":
        (tmp_path / "texts").mkdir()
        (tmp_path / "texts" / "a.txt").write_text("The key is under the stone.", encoding="utf-8")
        settings["environment"] = {"name": "search", "folder": str(tmp_path / "texts")}
    given = played(skip_zero_advantage_batches=False, train={"max_length": 512}, **settings)
    assert finetooth.run(given).steps == 2
    found = metrics(Path(given["output"]))
    assert all(one[f"rewards/{name}/mean"] <= 1 for one in found if name != "single_turn")
    assert all(one["environment/errors"] == 0 and one["environment/turns"] >= 1 for one in found)


PARTS = {"prefetch": 2, "partial_rollouts": 2, "max_completion_length": 6, "temperature": 0.9}


def test_turns_go_on_under_the_weights_of_each_step(
    played: Callable[..., Any], metrics: Callable[[Path], list[dict[str, float]]]
) -> None:
    """Two tokens of a turn a step: tokens of one episode have versions that rise, each with the log-probability that it
    was drawn by, and staleness stays within its bound."""
    given = played(**PARTS, num_generations=2, train={"max_steps": 5})
    finetooth.run(given)
    folder = Path(given["output"])
    steps, found = dict(read_rollouts(folder)), metrics(folder)
    drawn = [(step, one.of_policy(one.versions)) for step, of in steps.items() for one in of]
    assert max(len(set(versions)) for _, versions in drawn) > 2
    assert all(list(versions) == sorted(versions) and step - 1 - min(versions) <= 2 for step, versions in drawn)
    assert max(one["staleness/max"] for one in found) == 2
    assert found[0]["sampling/sampling_logp_difference/max"] < 1e-4  # the first batch is of the weights that train


def test_an_environment_whose_episodes_are_not_the_same_again_plays_them_whole(played: Callable[..., Any]) -> None:
    with pytest.raises(FinetoothError, match=r"method\.partial_rollouts: the environment dice.*capability seeded"):
        finetooth.run(played(**PARTS, environment="dice"))


@pytest.mark.slow
@pytest.mark.parametrize("groups", [False, True])
@pytest.mark.parametrize("at", [1, 2, 4])
def test_a_killed_run_with_episodes_in_parts_goes_on_bit_for_bit(
    played: Callable[..., Any], at: int, groups: bool
) -> None:
    """Killed while episodes wait in the middle of turns; with `partial_groups`, also while some are late."""
    given = played(**PARTS, num_generations=2, partial_groups=groups, train={"max_steps": 6})
    given |= {"checkpoint": {"every": 1, "keep_last": 9}}
    finetooth.run(given)
    folder = Path(given["output"])
    steps = dict(read_rollouts(folder))
    assert any(len(set(one.of_policy(one.versions))) > 2 for of in steps.values() for one in of)
    whole = rewound(folder, at)
    assert finetooth.resume(folder).steps == 6
    assert differences(left(whole), left(folder)) == []
    assert dict(read_rollouts(folder)) == steps
