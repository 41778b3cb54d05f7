"""Settings of learning from rollouts end to end: the entropy that steers a bonus, and what ends an answer."""

from __future__ import annotations

import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import finetooth
import pytest
from finetooth_hooks import FinetoothError
from finetooth_rollouts.rollouts_file import read_rollouts
from transformers import AutoTokenizer

sys.path.insert(0, str(Path(__file__).parents[1] / "torture"))

from killing import differences, left, rewound  # type: ignore[import-not-found]


@pytest.fixture
def online(online_recipe: Callable[..., Any]) -> Callable[..., Any]:
    """A recipe that learns from rollouts; keyword arguments go into its method."""
    method = {"name": "grpo", "num_generations": 4, "max_completion_length": 12}
    return online_recipe(method, {"batch_size": 2, "max_steps": 4})  # type: ignore[no-any-return]


def test_memory_is_planned_for_all_answers_of_a_batch(online: Callable[..., Any]) -> None:
    """Answers to a prompt are rows of the step each, as long as a prompt and the longest answer; a server draws them,
    and the plan holds what trains alone."""
    server = {"name": "vllm", "url": "http://127.0.0.1:9"}
    one, four = (finetooth.session(online(num_generations=n, sampler=server)).job for n in (2, 8))
    few, many = (job.prepared.report for job in (one, four))
    assert (many.used, many.tokens, many.examples) == (4 * few.used, 4 * few.tokens, few.examples)
    assert many.longest == few.longest
    at_once = [job.plan.memory.parts["activations"] for job in (one, four)]
    assert 3 < at_once[1] / at_once[0] <= 4.01


STEERED = {"entropy_target": 50.0, "entropy_coef": 0.01, "entropy_coef_delta": 0.004, "entropy_coef_max": 0.02}


@pytest.mark.parametrize(
    ("share", "at"),
    [(0.5, 2), pytest.param(1.0, 1, marks=pytest.mark.slow), pytest.param(0.2, 3, marks=pytest.mark.slow)],
)
def test_a_steered_bonus_goes_on_bit_for_bit(
    online: Callable[..., Any], metrics: Callable[[Path], list[dict[str, float]]], share: float, at: int
) -> None:
    """Its weight grows from step to step as the entropy is below so high a target, also behind a kill, and the bonus
    counts from the second step."""
    given = online(num_iterations=2, top_entropy_quantile=share, **STEERED)
    given |= {"checkpoint": {"every": 1, "keep_last": 9}}
    finetooth.run(given)
    folder = Path(given["output"])
    found = metrics(folder)
    assert [one["entropy_coef"] for one in found] == pytest.approx([0.014, 0.018, 0.02, 0.02])
    of = "entropy/trained" if share < 1 else "entropy"
    expected = [0.0, *(-one["entropy_coef"] * later[of] for one, later in pairwise(found))]
    assert [one["loss/entropy"] for one in found] == pytest.approx(expected, rel=1e-5)
    if share < 1:
        assert all(one["entropy/trained"] > one["entropy"] for one in found)
    whole = rewound(folder, at)
    assert finetooth.resume(folder).steps == 4
    assert differences(left(whole), left(folder)) == []


@pytest.mark.parametrize("parts", [{}, pytest.param({"prefetch": 1, "partial_rollouts": 3}, marks=pytest.mark.slow)])
def test_answers_end_where_the_recipe_says(online: Callable[..., Any], parts: dict[str, Any]) -> None:
    """At a string, which may begin in one part of an answer and end in the next: the text ends before, and the tokens
    that are trained include it."""
    given = online(stop=["a", "re"], num_generations=8, max_completion_length=24, **parts)
    finetooth.run(given)
    found = [one for _, of in read_rollouts(Path(given["output"])) for one in of]
    tokenizer = AutoTokenizer.from_pretrained(given["model"])
    ended = [one for one in found if one.outcome == "stop" and len(one.tokens) < 24]
    assert len(ended) > len(found) / 2
    for one in found:
        said = tokenizer.decode(list(one.tokens))
        assert "a" not in one.text and "re" not in one.text and said.startswith(one.text)
        assert len(one.logprobs) == len(one.tokens) == len(one.advantages)
    cut = [one for one in ended if tokenizer.decode(list(one.tokens)) != one.text]
    for one in cut:
        before = tokenizer.decode(list(one.tokens[:-1]))
        assert "a" not in before and "re" not in before  # the last token completes it
    assert cut


def test_answers_end_with_the_tokens_of_the_recipe(online: Callable[..., Any]) -> None:
    plain = online()
    finetooth.run(plain)
    first = dict(read_rollouts(Path(plain["output"])))[1][0]
    end = first.tokens[4]
    given = {**online(stop_ids=[end]), "output": plain["output"] + "-ended"}
    finetooth.run(given)
    found = dict(read_rollouts(Path(given["output"])))[1]
    assert found[0].tokens == first.tokens[: first.tokens.index(end) + 1] and found[0].outcome == "stop"
    assert all(end not in one.tokens[:-1] for one in found)


@pytest.mark.parametrize(
    ("method", "why"),
    [
        ({"stop_ids": [10**6]}, r"method\.stop_ids\.0: 1000000 is not a token of the model, which has \d+"),
        ({"stop": [""]}, r"method\.stop\.0: must not be empty"),
        ({"stop": ["a"], "environment": "guess"}, "an environment ends its turns: leave them out"),
        (
            {"name": "best_of_n", "top_entropy_quantile": 0.2},
            "top_entropy_quantile act only in losses with an importance ratio",
        ),
        (
            {"name": "opd", "teacher": "x", "teacher_top_k": 4, "entropy_target": 1.0},
            "leave entropy_target and top_entr",
        ),
    ],
)
def test_what_cannot_be_is_refused(online: Callable[..., Any], method: dict[str, Any], why: str) -> None:
    with pytest.raises(FinetoothError, match=why):
        finetooth.run(online(**method))
