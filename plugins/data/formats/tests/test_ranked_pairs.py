"""Rankings made pairs, pairs made labelled answers, and raw text: compared with what a few lines of plain code find."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from finetooth_formats.sides import common_text
from finetooth_hooks import Message, RecipeError, Row
from finetooth_hooks.data.examples import Labelled, LeftOut, Pair, Stepwise, examples_in
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

Make = Callable[..., Any]

Q = (Message("user", "q"),)


def said(text: str) -> tuple[Message, ...]:
    return (Message("assistant", text),)


NUMBERS = st.lists(st.integers(0, 4), min_size=2, max_size=6)


@given(numbers=NUMBERS, high=st.booleans())
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_all_pairs_of_a_ranking(format_of: Make, numbers: list[int], high: bool) -> None:
    """Every two answers once: the better one first with its margin, or left out for a tie."""
    answers = [f"a{i}" for i in range(len(numbers))]
    values = {"prompt": "q", "responses": answers, "scores" if high else "ranks": numbers}
    found = examples_in(format_of("preference", pairs="all").read(Row("1", values)))
    wanted, ties = set(), 0
    for i, a in enumerate(numbers):
        for j, b in enumerate(numbers):
            if (a > b) if high else (a < b):
                wanted.add((answers[i], answers[j], float(abs(a - b))))
            ties += i < j and a == b
    made = [one for one in found if isinstance(one, Pair)]
    assert {(pair.chosen[0].content, pair.rejected[0].content, pair.margin) for pair in made} == wanted
    assert len(made) == len(wanted) and all(pair.prompt == Q for pair in made)
    assert [one for one in found if isinstance(one, LeftOut)] == [LeftOut("two answers are equally good")] * ties


@given(numbers=NUMBERS)
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_adjacent_pairs_of_a_ranking(format_of: Make, numbers: list[int]) -> None:
    """Walking down the ranking, step by step: k answers are k - 1 pairs or ties."""
    values = {"prompt": "q", "responses": [f"a{i}" for i in range(len(numbers))], "scores": numbers}
    found = examples_in(format_of("preference", pairs="adjacent").read(Row("1", values)))
    down = sorted(numbers, reverse=True)
    margins = [one.margin if isinstance(one, Pair) else 0.0 for one in found]
    assert margins == [float(a - b) for a, b in pairwise(down)]


def test_a_ranking_by_order_alone(format_of: Make) -> None:
    values = {"prompt": "q", "responses": ["a", "b", "c"]}
    format_ = format_of("preference", ordered=True, pairs="adjacent")
    assert "'responses', the best first: each answer and the next worse one make a pair" in format_.detect(values)
    assert format_.read(Row("1", values)) == [
        Pair(Q, said("a"), said("b"), 1.0),
        Pair(Q, said("b"), said("c"), 1.0),
    ]


def test_ratings_of_two_answers_are_a_margin(format_of: Make) -> None:
    values = {"prompt": "q", "chosen": "a", "rejected": "b", "score_chosen": 8.5, "score_rejected": 6}
    assert format_of("preference").read(Row("1", values)).margin == 2.5
    assert format_of("preference").read(Row("1", {**values, "margin": 1})).margin == 1.0


def test_pairs_made_labelled_answers(format_of: Make) -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]
    values = {"prompt": "q", "chosen": "a", "rejected": "b", "system": "s", "tools": tools}
    asked = (Message("system", "s"), *Q)
    assert format_of("preference", unpair=True).read(Row("1", values)) == [
        Labelled(asked, said("a"), True, tuple(tools)),
        Labelled(asked, said("b"), False, tuple(tools)),
    ]
    ranked = {"prompt": "q", "responses": ["b", "a", "c"], "scores": [2, 3, 1]}
    found = format_of("preference", unpair=True).read(Row("1", ranked))
    assert [(one.completion, one.label) for one in found] == [(said("a"), True), (said("c"), False)]
    with pytest.raises(RecipeError, match="unpair needs pairs: best-worst"):
        format_of("preference", unpair=True, pairs="all")


@pytest.mark.parametrize(
    ("values", "pair"),
    [
        ({"prompt": "The sky is", "chosen": " blue", "rejected": " red"}, ("The sky is", " blue", " red")),
        ({"chosen": "The sky is blue", "rejected": "The sky is black"}, ("The sky is", " blue", " black")),
        ({"chosen": "a b", "rejected": "a b c"}, ("a", " b", " b c")),
        ({"chosen": "\n\nHuman: q\n\nAssistant: x", "rejected": "\n\nHuman: q\n\nAssistant: y"},
         ("\n\nHuman: q\n\nAssistant:", " x", " y")),
    ],
)  # fmt: skip
def test_raw_text(format_of: Make, values: dict[str, str], pair: tuple[str, str, str]) -> None:
    assert format_of("preference", style="raw").read(Row("1", values)) == Pair(*pair)


def test_raw_text_without_a_word_in_common(format_of: Make) -> None:
    found = format_of("preference", style="raw").read(Row("1", {"chosen": "blue sky", "rejected": "black sky"}))
    assert found == LeftOut("chosen and rejected have no prompt in common")


@given(st.text("ab \n", max_size=8), st.text("ab \n", max_size=8), st.text("ab \n", max_size=8))
def test_a_common_text_ends_before_a_blank(start: str, one: str, two: str) -> None:
    first, second = start + one, start + two
    end = common_text(first, second)
    assert first[:end] == second[:end]
    if end:
        assert first[end].isspace() and second[end].isspace()
        longer = range(end + 1, min(len(first), len(second)))
        assert not any(first[:i] == second[:i] and first[i].isspace() and second[i].isspace() for i in longer)


def test_numbers_become_labels_at_a_threshold(format_of: Make) -> None:
    row = {"prompt": "q", "completion": "a"}
    labels = [format_of("labelled", threshold=3).read(Row("1", {**row, "label": n})).label for n in (2.5, 3, 4)]
    assert labels == [False, True, True]


def test_alternatives_of_a_step_are_examples_without_labels_before_them(format_of: Make) -> None:
    def step(*rated: tuple[str, int | None], chosen: int | None = None) -> dict[str, Any]:
        completions = [{"text": text, "rating": rating} for text, rating in rated]
        return {"completions": completions, "human_completion": None, "chosen_completion": chosen}

    steps = [step(("a", 1), ("b", -1), chosen=0), step(("c", None), ("d", 0), ("e", 1), chosen=2), step(("f", -1))]
    values = {"question": {"problem": "q"}, "label": {"steps": steps}}
    assert format_of("stepwise").read(Row("1", values)) == Stepwise(Q, ("a", "e", "f"), (True, True, False))
    assert format_of("stepwise", alternatives=True, neutral="bad").read(Row("1", values)) == [
        Stepwise(Q, ("a", "e", "f"), (True, True, False)),
        Stepwise(Q, ("b",), (False,)),
        Stepwise(Q, ("a", "d"), (None, False)),
    ]
    only = {"question": {"problem": "q"}, "label": {"steps": [step(("c", None), ("d", 1), chosen=0)]}}
    assert format_of("stepwise").read(Row("1", only)) == LeftOut("no step has a rating")
    assert format_of("stepwise", alternatives=True).read(Row("1", only)) == Stepwise(Q, ("d",), (True,))
