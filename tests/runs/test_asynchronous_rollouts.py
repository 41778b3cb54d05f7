"""Prompts that are answered ahead: by which weights is a matter of counts, so a run is the same run again."""

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

REWARD = '''
"""A reward that answers of a random model differ in; it can wait until a step is done."""
import threading
from finetooth_hooks import NoOptions, Reward, hookimpl

STEPPED = threading.Event()

@hookimpl
def ft_rewards():
    yield Reward(name="letters", build=f"{__name__}:build")
    yield Reward(name="patient", build=f"{__name__}:build_patient")
    yield Reward(name="rare", build=f"{__name__}:build_rare")

@hookimpl
def ft_step(run, report):
    STEPPED.set()

def letters(prompts, completions, columns):
    return [float(sum(c in "aeiou" for c in text)) for text in completions]

def build(options: NoOptions, context):
    return letters

def build_rare(options: NoOptions, context):
    return lambda *asked: [float(score > 4) for score in letters(*asked)]

def build_patient(options: NoOptions, context):
    seen = []
    def score(*asked):
        seen.append(1)
        if len(seen) > 1 and not STEPPED.wait(60):
            raise RuntimeError("no step was taken while this reward was asked")
        return letters(*asked)
    return score
'''


@pytest.fixture
def online(online_recipe: Callable[..., Any]) -> Callable[..., Any]:
    """A recipe that answers ahead; keyword arguments go into its method."""
    method = {"name": "grpo", "num_generations": 4, "max_completion_length": 8, "prefetch": 2}
    return online_recipe(method, {"batch_size": 2, "max_steps": 5}, REWARD)  # type: ignore[no-any-return]


@pytest.mark.slow
@pytest.mark.parametrize("at", [2, pytest.param(1, marks=pytest.mark.slow), pytest.param(4, marks=pytest.mark.slow)])
def test_a_killed_run_goes_on_bit_for_bit(
    online: Callable[..., Any], at: int, metrics: Callable[[Path], list[dict[str, float]]]
) -> None:
    """With draws that wait, drawn by weights that are no more; versions are those of the clock, and the numbers that
    say how far sampler and trainer are apart are of what was drawn."""
    given = online()
    given |= {"checkpoint": {"every": 1, "keep_last": 9}}
    finetooth.run(given)
    folder = Path(given["output"])
    steps = dict(read_rollouts(folder))
    assert {step: {v for one in of for v in one.versions} for step, of in steps.items()} == {
        1: {0}, 2: {0}, 3: {0}, 4: {1}, 5: {2}
    }  # fmt: skip
    found = metrics(folder)
    assert [one["staleness/max"] for one in found] == [0, 1, 2, 2, 2]
    assert found[0]["sampling/kl"] < 1e-9 < 1e-6 < found[2]["sampling/kl"]
    assert found[0]["sampling/effective_sample_size"] > found[2]["sampling/effective_sample_size"] > 0
    whole = rewound(folder, at)
    assert finetooth.resume(folder).steps == 5
    assert differences(left(whole), left(folder)) == []
    assert dict(read_rollouts(folder)) == steps


@pytest.mark.slow
def test_rewards_are_made_while_the_engine_trains(
    online: Callable[..., Any], metrics: Callable[[Path], list[dict[str, float]]]
) -> None:
    """The second answers' reward waits for the first step: one after the other they would wait for ever. The run is,
    to the bit, the one whose rewards are made at once."""
    given = online(rewards=["patient"], prefetch=1, train={"max_steps": 3})
    finetooth.run(given)
    at_once = online(rewards=["letters"], prefetch=1, train={"max_steps": 3})
    at_once["output"] += "-at-once"
    finetooth.run(at_once)
    one, other = (dict(read_rollouts(Path(of["output"]))) for of in (given, at_once))
    assert sorted(one) == sorted(other) == [1, 2, 3]
    for step, of in one.items():
        assert [r.tokens for r in of] == [r.tokens for r in other[step]]
        assert [r.advantages for r in of] == [r.advantages for r in other[step]]
    losses = [[m["sampling/kl"] for m in metrics(Path(of["output"]))] for of in (given, at_once)]
    assert losses[0] == losses[1]


@pytest.mark.slow
def test_what_was_drawn_by_older_weights_counts_by_its_weight(online: Callable[..., Any]) -> None:
    """The first step learns from what its own weights drew, and no weight changes it; the second does not. What a
    token was drawn by is kept as it was."""
    given = online(prefetch=1, importance_correction="none", train={"max_steps": 2}, loss_type="bnpo")
    finetooth.run(given)
    corrected = online(prefetch=1, importance_correction_cap=1.0, train={"max_steps": 2}, loss_type="bnpo")
    corrected["output"] += "-corrected"
    finetooth.run(corrected)
    plain, weighed = (
        [json.loads(line) for line in (Path(of["output"]) / "metrics.jsonl").read_text().splitlines()]
        for of in (given, corrected)
    )
    losses = [[line["loss"] for line in lines if line["event"] == "step"] for lines in (plain, weighed)]
    assert losses[0][0] == pytest.approx(losses[1][0], abs=1e-6)  # of the weights that train
    assert abs(losses[0][1] - losses[1][1]) > 1e-5
    (of,) = (read for step, read in read_rollouts(Path(given["output"])) if step == 2)
    assert np.isfinite([value for one in of for value in one.fields["behaviour_logprobs"]]).all()
    assert all(one.fields["behaviour_logprobs"] == one.logprobs for one in of)


PARTS = {"prefetch": 2, "partial_rollouts": 2, "partial_groups": True, "replay_groups": 4, "reroll_groups": 1,
         "reroll_start": 0.0, "streaming_groups": 1, "max_completion_length": 7}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("at", [1, 3, 5])
def test_a_killed_run_with_answers_in_parts_goes_on_bit_for_bit(
    online: Callable[..., Any], at: int, metrics: Callable[[Path], list[dict[str, float]]]
) -> None:
    """Answers that several weights wrote, kept groups, and prompts that are asked again."""
    given = online(**PARTS, num_generations=2, train={"max_steps": 6}, rewards=["rare"])
    given |= {"checkpoint": {"every": 1, "keep_last": 9}}
    finetooth.run(given)
    folder = Path(given["output"])
    steps, found = dict(read_rollouts(folder)), metrics(folder)
    assert any(len(set(one.versions)) > 2 for of in steps.values() for one in of)
    assert sum(one["replayed_groups"] for one in found) > 0
    whole = rewound(folder, at)
    assert finetooth.resume(folder).steps == 6
    assert differences(left(whole), left(folder)) == []
    assert dict(read_rollouts(folder)) == steps


@pytest.mark.slow
def test_the_old_log_probability_of_a_token_is_that_of_its_own_version(online: Callable[..., Any]) -> None:
    """Every token of an answer that three weights wrote, read by each of the checkpoints: what it was drawn by is what
    its own version says, and not what another does."""
    given = online(prefetch=2, partial_rollouts=2, max_completion_length=7, train={"max_steps": 3})
    given |= {"checkpoint": {"every": 1, "keep_last": 9}}
    finetooth.run(given)
    of = [one for one in dict(read_rollouts(Path(given["output"])))[3] if len(set(one.versions)) == 3]
    assert of
    said = []
    for version in range(3):
        at = {**given, "output": f"{given['output']}-{version}", "method": "sft", "plugins": []}
        at["data"] = {"train": given["data"]["train"], "renderer": "chatml"}
        engine = finetooth.engine(at)
        if version:
            engine.load(Path(given["output"]) / "checkpoints" / f"step-{version}" / "engine")
        data = [Datum.from_tokens([*one.prompt, *one.tokens], [0.0] * len(one.prompt) + [1.0] * len(one.tokens))
                for one in of]  # fmt: skip
        said.append([scores[datum.mask] for scores, datum in zip(engine.logprobs(data), data, strict=True)])
    for i, one in enumerate(of):
        own = [float(said[version][i][t]) for t, version in enumerate(one.versions)]
        np.testing.assert_allclose(one.fields["behaviour_logprobs"], own, atol=2e-5)
        others = [float(said[(version + 1) % 3][i][t]) for t, version in enumerate(one.versions)]
        assert np.abs(np.array(others) - one.fields["behaviour_logprobs"]).max() > 1e-3


@pytest.mark.parametrize(
    ("method", "why"),
    [
        ({"prefetch": 0, "partial_rollouts": 4}, "partial_rollouts is about what is answered ahead"),
        ({"partial_groups": True}, "set partial_rollouts too"),
        ({"streaming_groups": 1, "environment": "calculator"}, "streaming_groups is for single answers"),
        ({"dynamic_sampling": True, "replay_groups": 2}, "dynamic_sampling fills batches itself"),
        ({"reroll_groups": 1, "dynamic_sampling": True}, "dynamic_sampling fills batches itself"),
    ],
)
def test_what_does_not_go_together_is_refused(online: Callable[..., Any], method: dict[str, Any], why: str) -> None:
    with pytest.raises(FinetoothError, match=why):
        finetooth.run(online(**method))
