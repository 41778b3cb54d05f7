"""Of a row that `sft` reads: what asks, and what is answered."""

from __future__ import annotations

import pytest
from finetooth_hooks import DataError, Datum
from finetooth_rollouts.data import prompt_and_answer


@pytest.mark.parametrize(
    ("weights", "prompt", "answer"),
    [
        ([0, 0, 1, 1, 1], (7, 8), (9, 10, 11)),
        ([0, 1, 0, 1, 0], (7, 8, 9), (10,)),  # the last of two turns, and what follows it
        ([0, 0, 0.5, 1, 0.5], (7, 8), (9, 10, 11)),
    ],
)
def test_the_last_stretch_that_trains_is_the_answer(
    weights: list[float], prompt: tuple[int, ...], answer: tuple[int, ...]
) -> None:
    assert prompt_and_answer(Datum.from_tokens([7, 8, 9, 10, 11], weights)) == (prompt, answer)


def test_a_text_of_which_all_trains_asks_nothing() -> None:
    with pytest.raises(DataError, match=r"rows\.jsonl:3: all of the row trains"):
        prompt_and_answer(Datum.from_tokens([7, 8, 9], [1, 1, 1], id="rows.jsonl:3"))
