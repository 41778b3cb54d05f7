"""The reward `math_verify` on hand-written pairs and on real answers, and on formulas that do not end."""

from __future__ import annotations

import json
import os
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from finetooth_hooks import DataError
from finetooth_kit import parametrize_with_checks
from finetooth_math.reward import Math, MathOptions, build

SHARED = Path(os.environ.get("FT_SHARED", Path(__file__).parents[5] / "shared")) / "data" / "rl"
needs_data = pytest.mark.skipif(not SHARED.is_dir(), reason="no shared data here (FT_SHARED)")


@parametrize_with_checks("finetooth_math.plugin")
def test_conforms(check: Any) -> None:
    check()


@pytest.fixture(scope="module")
def reward(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Math]:
    """One with the defaults, and so with one process."""
    made = build(MathOptions())
    yield made
    made.workers.end()


def score(reward: Math, said: list[str], expected: list[Any]) -> list[float | None]:
    return reward(["?"] * len(said), said, {reward.options.column: expected})


def rows(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (SHARED / name).read_text(encoding="utf-8").splitlines()]


OTHERWISE = {
    ("50%", "0.5"): "a per cent is its hundredth",
    ("12 cm", "12 m"): "units are left out",
    ("\\sqrt{2}", "1.41421356"): "decimals are compared to six digits",
    ("(-\\infty,3]", "x \\le 3"): "an interval is no inequality",
    ("1e3", "1000"): "no exponents",
    ("0.\\overline{3}", "1/3"): "no periods",
    ("72", "I think it is 71 or 72."): "the last number counts",
    ("\\begin{pmatrix}1\\\\2\\end{pmatrix}", "\\begin{pmatrix} 1 \\\\ 2 \\end{pmatrix}"): "no such matrices",
}
"""Where math-verify 0.9 says otherwise than the hand that wrote the pairs."""


@needs_data
def test_hand_written_pairs(reward: Math) -> None:
    """All 60 pairs but those of `OTHERWISE`; the one that must not be computed ends."""
    pairs = rows("math_equal_own.jsonl")
    found = score(reward, [row["answer"] for row in pairs], [row["gold"] for row in pairs])
    wrong = [
        (row["gold"], row["answer"]) for row, one in zip(pairs, found, strict=True) if (one == 1.0) != row["equal"]
    ]
    assert wrong == list(OTHERWISE)


@needs_data
def test_gsm8k(reward: Math) -> None:
    """Ways to write the right number score 1, another number 0."""
    answers = [row["answer"] for row in rows("gsm8k_prompts_500.jsonl")][::10]
    ways = ["\\boxed{%s}", "So the answer is %s.", "It is $%s$ in all.", "#### %s"]
    right = [ways[i % 4] % answer for i, answer in enumerate(answers)]
    wrong = [ways[i % 4] % f"{float(answer) + 1:g}" for i, answer in enumerate(answers)]
    assert score(reward, right, answers) == [1.0] * len(answers)
    assert score(reward, wrong, answers) == [0.0] * len(answers)


@needs_data
def test_aqua(reward: Math) -> None:
    """Letters of choices; another letter is wrong."""
    letters = [row["correct"] for row in rows("aqua_254.jsonl")][::5]
    draw = random.Random(0)
    others = [draw.choice([one for one in "ABCDE" if one != letter]) for letter in letters]
    assert score(reward, [f"The answer is {letter}." for letter in letters], letters) == [1.0] * len(letters)
    assert score(reward, [f"The answer is {letter}." for letter in others], letters) == [0.0] * len(letters)
    assert score(reward, [f"({letter})" for letter in letters], letters) == [1.0] * len(letters)


@pytest.mark.slow
def test_tricky_and_hostile(tmp_path: Path) -> None:
    reward = build(MathOptions(time_limit=1))
    said = ["\\boxed{2\\sqrt{2}}", "", "9**9**9**9**9", "\\boxed{" * 3000, "$" * 9999, "(" * 5000, "1" * 10000, "72"]
    expected = ["\\sqrt{8}", "72", "1", "1", "1", "1", "1", None]
    assert score(reward, said, expected) == [1.0, *[0.0] * 6, None]
    assert score(reward, ["72"], ["72"]) == [1.0]  # its process goes on, or another took its place
    reward.workers.end()


def test_only_what_follows_a_mark_is_read(tmp_path: Path) -> None:
    reward = build(MathOptions(after="####", column="solution"))
    try:
        found = score(reward, ["5 or #### 6", "6", "#### 5"], ["3 + 3\n#### 6"] * 3)
    finally:
        reward.workers.end()
    assert found == [1.0, 0.0, 0.0]


def test_a_missing_column_is_named(reward: Math) -> None:
    with pytest.raises(DataError, match=re.escape("reward math_verify: no column 'answer'; there are: gold")):
        reward(["?"], ["1"], {"gold": ["1"]})
