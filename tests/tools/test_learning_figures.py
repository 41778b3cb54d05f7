"""What the learning page says of held-out rows: intervals, the length rule, splits that share no prompt."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

SHARED = Path(os.environ.get("FT_SHARED", Path(__file__).parents[2].parent / "shared")) / "data"
needs_data = pytest.mark.skipif(not SHARED.is_dir(), reason="no shared data here (FT_SHARED)")


def test_pairs_of_one_prompt_widen_the_interval() -> None:
    from learning.figures import of_pairs

    random = np.random.default_rng(0)
    of_prompt = random.normal(0.3, 1.0, size=60)
    margins = np.repeat(of_prompt, 5).tolist()  # five pairs of a prompt that all say the same
    lengths = random.integers(-20, 20, size=300).tolist()
    alone = of_pairs(margins, lengths, list(range(300)), longer_is_better=True)
    shared = of_pairs(margins, lengths, np.repeat(range(60), 5).tolist(), longer_is_better=True)
    assert alone["accuracy"] == shared["accuracy"] == pytest.approx(np.mean(np.array(margins) > 0))
    width, wider = (one["accuracy_high"] - one["accuracy_low"] for one in (alone, shared))
    # 60 independent answers, each five times, know as much as 60
    assert wider / width == pytest.approx(5**0.5, rel=0.1)


def test_the_length_rule_goes_by_what_training_rows_say() -> None:
    from learning.figures import of_pairs

    found = of_pairs([1.0, 1.0, -1.0, 0.0], [3, -2, 5, 0], [0, 1, 2, 3], longer_is_better=True)
    assert (found["accuracy"], found["length_accuracy"]) == (2.5 / 4, 2.5 / 4)
    other = of_pairs([1.0, 1.0, -1.0, 0.0], [3, -2, 5, 0], [0, 1, 2, 3], longer_is_better=False)
    assert (other["length_accuracy"], other["ahead_of_length"]) == (1.5 / 4, pytest.approx(1 / 4))


def test_paired_differences_are_students_t() -> None:
    from learning.figures import paired

    stats = pytest.importorskip("scipy.stats")
    first, second = [0.61, 0.58, 0.64, 0.6, 0.63], [0.55, 0.6, 0.57, 0.56, 0.6]
    expected = stats.ttest_rel(first, second).confidence_interval(0.95)
    found = paired(first, second)
    assert (found["low"], found["high"]) == pytest.approx((expected.low, expected.high), rel=1e-3)


@needs_data
@pytest.mark.parametrize(
    "name", ["shorter-rm", "polite-dpo", "ranked-rm", "harmless-rm", "steps-prm", "kto-weighted-0"]
)
def test_no_prompt_is_in_both_splits(name: str) -> None:
    from learning.tasks import TASKS, prompt_of

    train, held_out = TASKS[name].rows(SHARED)
    assert len(held_out) > 50 and len(train) > 100
    if name.startswith("kto"):  # messages against transcripts: by what the person says first
        train = [{"prompt": row["prompt"][0]["content"]} for row in train]
        held_out = [
            {"prompt": str(row["chosen"]).split("\n\nAssistant:")[0].removeprefix("\n\nHuman: ").strip()}
            for row in held_out
        ]
    assert not {prompt_of(row) for row in train} & {prompt_of(row) for row in held_out}


@needs_data
def test_ten_undesirable_answers_for_each_desirable_one() -> None:
    from learning.tasks import TASKS

    (rows, _), (others, _) = (TASKS[f"kto-weighted-{seed}"].rows(SHARED) for seed in (0, 1))
    labels = [row["label"] for row in rows]
    assert (labels.count(True), labels.count(False)) == (20, 200)
    assert rows != others, "each seed draws other rows"
    assert rows == TASKS["kto-unweighted-0"].rows(SHARED)[0], "both kinds of a seed see the same rows"
    assert all(row["prompt"][-1]["role"] == "user" and row["completion"][0]["role"] == "assistant" for row in rows)


def test_the_page_in_the_repository_is_what_the_results_give(tmp_path: Path) -> None:
    from learning.page import FOLDER, drawings, read, render

    docs = Path(__file__).resolve().parents[2] / "docs"
    results = read(FOLDER)
    charts = drawings(results)
    assert (docs / "learning.md").read_text(encoding="utf-8") == render(results, tuple(charts)), (
        "run python tools/learn_rewards.py --page"
    )
    assert {name: (docs / f"learning/{name}.svg").read_text(encoding="utf-8") for name in charts} == charts


def test_the_page_says_what_was_found(tmp_path: Path) -> None:
    from learning.page import draw

    reached = {
        "pairs": 160, "prompts": 40, "accuracy": 0.7, "accuracy_low": 0.61, "accuracy_high": 0.78,
        "length_rule": "longer", "length_accuracy": 0.69, "ahead_of_length": 0.01, "ahead_low": -0.04,
        "ahead_high": 0.06, "margin": 1.0,
    }  # fmt: skip
    curve = [[step, 0.7 - step / 100, 0.5 + step / 50, 0.1] for step in range(1, 16)]
    one = {"about": "ranked", "part_of": "", "rows": {"train": 437}, "reached": reached, "curve": curve}
    folder = tmp_path / "learning"
    folder.mkdir()
    written = {"ranked-rm": {"task": "ranked-rm", "method": {"name": "rm"}, **one}}
    for seed in range(2):
        for kind, accuracy in (("weighted", 0.6 + seed / 50), ("unweighted", 0.5)):
            name = f"kto-{kind}-{seed}"
            told = {"part_of": "kto", "reached": {**reached, "accuracy": accuracy}, "task": name}
            written[name] = {**one, "method": {"name": "kto"}, **told}
    for name, result in written.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(result))
    draw(tmp_path, tmp_path)
    page = (tmp_path / "learning.md").read_text()
    assert "| ranked | rm | 437 | 160 (40) | 70.0 % (61.0 % to 78.0 %) | longer: 69.0 % | +1.0 (-4.0 to +6.0) |" in page
    assert "`rm` beats chance on 1 of 1 row sets" in page
    # differences 0.10 and 0.12: mean 0.11, deviation 0.01414, t(1) = 12.706
    assert "+11.0 points, 95 % interval\n-1.7 to +23.7" in page and "The interval contains 0" in page
    assert (folder / "accuracy-rm.svg").exists() and "learning/accuracy-rm.svg" in page
