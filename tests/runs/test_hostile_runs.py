"""Rewards, samplers and rows that a run must survive or name: one table, with the line that each is told by.

What contains hostile answers is tested where it lies: the sandbox (fork bomb, network, /proc, symlinks, memory, floods
of output, pickles) in the tests of the reward `code_tests`, rewards that hang or end their process in those of
`python_function`, servers that lie in those of the samplers.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import finetooth
import pytest
from finetooth_hooks import EngineError, FinetoothError, Sampling
from finetooth_hooks.rollouts import Prompt, Rollout, Sampled
from finetooth_rollouts.checked_sampler import CheckedSampler
from finetooth_rollouts.rollouts_file import read_rollouts

REWARD = """
from finetooth_hooks import NoOptions, Reward, hookimpl

@hookimpl
def ft_rewards():
    yield Reward(name="letters", build=f"{__name__}:build")

def build(options: NoOptions, context):
    return lambda prompts, completions, columns: BODY
"""

REWARDS = {
    "raises": ("1 / 0", r"reward 'letters' raised ZeroDivisionError"),
    "nan": ("[float('nan')] * len(completions)", r"returned nan as the score of completion 1 \(.*family.*\)"),
    "infinite": ("[float('inf')] * len(completions)", r"returned inf as the score of completion 1"),
    "strings": ("['1.0'] * len(completions)", r"returned .*1\.0.* as the score of completion 1"),
    "too few": ("[1.0]", r"returned 1 score for 8 completions"),
    "too many": ("[1.0] * 99", r"returned 99 scores for 8 completions"),
    "no list": ("1.0", r"returned .*1\.0.* for 8 completions"),
    "nothing": ("None", r"returned .*None.* for 8 completions"),
    "all equal": ("[0.5] * len(completions)", r"method\.rewards.*nothing to learn from"),
    "all left out": ("[None] * len(completions)", r"all 80 answers so far were left out \(letters 80\), so there is n"),
}


@pytest.fixture
def online(online_recipe: Callable[..., Any]) -> Callable[..., Any]:
    """A recipe that learns from rollouts; keyword arguments go into its method."""
    method = {"name": "grpo", "num_generations": 4, "max_completion_length": 2}
    return online_recipe(method, {"batch_size": 2, "max_steps": 1}, REWARD)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    "what", ["nan", *(pytest.param(one, marks=pytest.mark.slow) for one in REWARDS if one != "nan")]
)
def test_a_reward_that_gives_what_is_none_ends_the_run_with_a_line(
    online: Callable[..., Any], tmp_path: Path, what: str
) -> None:
    body, why = REWARDS[what]
    given = online()
    (tmp_path / "letters.py").write_text(REWARD.replace("BODY", body), encoding="utf-8")
    with pytest.raises(FinetoothError, match=why) as caught:
        finetooth.run(given)
    assert "\n" not in str(caught.value) and caught.value.exit_code in (1, 2)
    steps = (Path(given["output"]) / "metrics.jsonl").read_text()
    assert '"event": "step"' not in steps.replace('"event":"step"', '"event": "step"')


def test_a_run_whose_prompts_are_used_up_without_a_step_fails(online: Callable[..., Any], tmp_path: Path) -> None:
    """Few rows, and a reward that says nothing of any: it ended as if it were done, without an artifact."""
    given = online()
    (tmp_path / "letters.py").write_text(REWARD.replace("BODY", "[None] * len(completions)"), encoding="utf-8")
    (tmp_path / "rows.jsonl").write_text('{"prompt": "2+2?", "answer": "4"}\n' * 2)
    given["data"]["train"] = str(tmp_path / "rows.jsonl")
    given["train"] = {**given["train"], "max_steps": None, "epochs": 1}
    with pytest.raises(FinetoothError, match=r"all 8 answers so far were left out \(letters 8\)") as caught:
        finetooth.run(given)
    assert caught.value.exit_code == 2


def test_a_prompt_that_the_model_cannot_read_is_named(online: Callable[..., Any], tmp_path: Path) -> None:
    """By its row, before anything is sampled."""
    rows = [{"prompt": "2+2?", "answer": "4"}, {"prompt": "word " * 3000, "answer": "4"}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = online()
    given["data"]["train"] = str(tmp_path / "rows.jsonl")
    for method in ({}, {"name": "self_rewarding", "sampler": "engine"}):
        given["method"] |= method
        with pytest.raises(FinetoothError, match=r"rows\.jsonl:2: \d+ tokens of the prompt and 1 of an answer are mo"):
            finetooth.run(given)


def test_a_row_with_arguments_for_the_template_is_named(online: Callable[..., Any], tmp_path: Path) -> None:
    """Which TRL would take; here they were given to rewards, and to nothing else."""
    rows = [{"prompt": "2+2?", "chat_template_kwargs": None}, {"prompt": "3?", "chat_template_kwargs": {"think": 0}}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = online()
    given["data"]["train"] = str(tmp_path / "rows.jsonl")
    with pytest.raises(FinetoothError, match=r"rows\.jsonl:2: the row has chat_template_kwargs.*name: jinja, argum"):
        finetooth.run(given)


TRUE = Rollout("a:1", "a:1@1", (3, 4), (5, 6), (-0.5, -1.0), (2, 2), "", "length", kept=((5, 7), (6, 9)))
LIES: dict[str, tuple[tuple[Rollout, ...], str]] = {
    "too few": ((TRUE,), "gave 1 rollouts, 2 were asked for"),
    "another prompt": ((TRUE, replace(TRUE, prompt=(3,))), "answered another prompt"),
    "another row": ((replace(TRUE, id="a:2"), TRUE), "answered another prompt"),
    "empty": ((replace(TRUE, tokens=(), logprobs=(), versions=(), kept=()), TRUE), "gave 0 tokens, 1 to 2 were asked"),
    "too long": (
        (TRUE, replace(TRUE, tokens=(5, 6, 6), logprobs=(-1.0,) * 3, versions=(2,) * 3, kept=())),
        "gave 3 tokens, 1 to 2 were asked",
    ),
    "nan": ((TRUE, replace(TRUE, logprobs=(-0.5, float("nan")))), "a log-probability that is none"),
    "above 0": ((TRUE, replace(TRUE, logprobs=(0.5, -1.0))), "a log-probability that is none"),
    "weights to come": ((TRUE, replace(TRUE, versions=(2, 3))), "weights of 3 steps drew a token.*have 2"),
    "no weights": ((TRUE, replace(TRUE, versions=(-1, 2))), "weights of -1 steps drew a token"),
    "a token to come": ((TRUE, replace(TRUE, tokens=(5, 64), kept=())), "gave the token 64, and the model has 64"),
    "a token below 0": ((TRUE, replace(TRUE, tokens=(-1, 6), kept=())), "gave the token -1, and the model has 64"),
    "not kept": ((TRUE, replace(TRUE, kept=((7,), (6, 9)))), "not among those it was drawn from"),
}


class Given:
    """A sampler that returns what it has, and the engine's version."""

    capabilities = frozenset({"own_engine"})
    weights_version = 2

    def __init__(self, rollouts: tuple[Rollout, ...]) -> None:
        self.rollouts = rollouts

    def sample(self, *_: Any) -> Sampled:
        return Sampled(self.rollouts)


@pytest.mark.parametrize("lie", LIES)
def test_a_sampler_that_lies_is_named(lie: str) -> None:
    rollouts, why = LIES[lie]
    given: Any = Given(rollouts)
    with pytest.raises(EngineError, match=f"method.sampler: mine .*{why}"):
        CheckedSampler(given, "mine", 64).sample(given, [Prompt("a:1", "a:1@1", (3, 4))], Sampling(2, n=2))
    told: Any = Given((TRUE, TRUE))
    checked = CheckedSampler(told, "mine", 64)
    assert checked.sample(told, [Prompt("a:1", "a:1@1", (3, 4))], Sampling(2, n=2)).rollouts == (TRUE, TRUE)
    assert checked.capabilities == {"own_engine"}


def test_a_sampler_that_gives_something_else_is_named() -> None:
    given: Any = Given(())
    given.sample = lambda *_: [TRUE, TRUE]
    with pytest.raises(EngineError, match=r"method\.sampler: mine gave list, not what it sampled"):
        CheckedSampler(given, "mine", 64).sample(given, [Prompt("a:1", "a:1@1", (3, 4))], Sampling(2, n=2))


def test_empty_answers_are_scored_and_trained(online: Callable[..., Any], tmp_path: Path) -> None:
    """Whatever comes first ends an answer here: its text is empty, its one token trains."""
    (tmp_path / "letters.py").write_text(
        REWARD.replace("BODY", "[float(i % 4 == 0 and not text) for i, text in enumerate(completions)]")
    )
    given = online(stop_ids=list(range(4096)), top_entropy_quantile=0.5, entropy_target=9.0)
    assert finetooth.run(given).steps == 1
    (found,) = dict(read_rollouts(Path(given["output"]))).values()
    assert [(one.text, len(one.tokens), one.outcome) for one in found] == [("", 1, "stop")] * 8
    assert [one.reward for one in found] == [1.0, 0.0, 0.0, 0.0] * 2 and all(one.advantages for one in found)
