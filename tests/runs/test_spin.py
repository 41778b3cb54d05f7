"""`spin` end to end: the rows' answers against those of the model that began the round."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import finetooth
import numpy as np
import pytest
from finetooth_hooks import FinetoothError, Message, Sampling

sys.path.insert(0, str(Path(__file__).parents[1] / "torture"))

from killing import differences, left, rewound  # type: ignore[import-not-found]


@pytest.fixture
def rounds(recipe: Callable[..., Any], tmp_path: Path) -> Callable[..., Any]:
    """A recipe of two rounds over six rows, two steps each; keyword arguments go into its method."""
    rows = [{"prompt": f"What is {n} + 3?", "completion": str(n + 3)} for n in range(6)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

    def make(**method: Any) -> Any:
        return recipe(
            data={"train": str(tmp_path / "rows.jsonl"), "renderer": "chatml"},
            method={"name": "spin", "max_completion_length": 6, **method},
            train={"batch_size": 3, "precision": "fp32", "max_length": 256, "epochs": 2},
            evaluate={"evaluators": []},
            checkpoint={"every": 1, "keep_last": 9},
        )

    return make


def test_the_policy_learns_to_prefer_the_rows(
    rounds: Callable[..., Any], losses: Callable[[Path], list[float]], metrics: Callable[[Path], list[dict[str, float]]]
) -> None:
    """When a round begins, policy and opponent are one: the loss is log 2, and no answer is preferred. The opponent of
    the first round is the base. A run that was killed in the middle of a round goes on bit for bit."""
    given = rounds(temperature=0.01)
    assert finetooth.run(given).steps == 4
    folder = Path(given["output"])
    assert [one["round"] for one in metrics(folder)] == [1, 1, 2, 2]
    found = losses(folder)
    assert [abs(value - np.log(2)) < 1e-5 for value in found] == [True, False, True, False]
    first, second = ([json.loads(line) for line in path.read_text().splitlines()]
                     for path in sorted((folder / "rounds").iterdir()))  # fmt: skip
    assert (first[0]["weights"], second[0]["weights"]) == (0, 2)
    engine = finetooth.engine({**given, "output": given["output"] + "-base"})
    renderer = finetooth.session(given | {"output": given["output"] + "-context"}, data=False).job.context.renderer
    for line in first[1:]:
        n = int(line["id"].rpartition(":")[2]) - 1
        assert line["chosen"].startswith(str(n + 3))
        asked = renderer.prompt((Message("user", f"What is {n} + 3?"),))
        ((answer,),) = engine.generate([asked], Sampling(6, 0.0))
        assert line["rejected"] == answer.text
    whole = rewound(folder, 1)
    assert finetooth.resume(folder).steps == 4
    assert differences(left(whole), left(folder)) == []


def test_a_text_that_asks_nothing_is_refused(rounds: Callable[..., Any], tmp_path: Path) -> None:
    given = rounds()
    (tmp_path / "rows.jsonl").write_text('{"text": "The quick brown fox."}\n', encoding="utf-8")
    with pytest.raises(FinetoothError, match=r"rows\.jsonl:1: .*nothing asks for an answer"):
        finetooth.run(given)
