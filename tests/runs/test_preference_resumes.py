"""A reference that was reckoned before the first step is had again where a run goes on without it."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "torture"))

from killing import differences, left  # type: ignore[import-not-found]

LABELLED = {"name": "kto", "loss": "apo_zero_unpaired", "reference": "precomputed"}


@pytest.mark.parametrize(
    ("method", "row"),
    [
        ({"name": "dpo", "reference": "precomputed"}, {"chosen": "Red.", "rejected": "It is blue."}),
        (LABELLED, {"completion": "Red.", "label": True}),
    ],
)
def test_full_training_goes_on_where_the_reference_is_not_kept(
    recipe: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: Any, row: dict[str, Any]
) -> None:
    import finetooth

    rows = [{"prompt": f"What colour is {'it ' * (1 + i % 3)}?", **row} for i in range(12)]
    if "label" in row:
        rows = [{**one, "label": i % 2 == 0} for i, one in enumerate(rows)]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(one) + "\n" for one in rows))
    given = recipe(
        method=method, adapter="full", data={"train": str(file), "eval": str(file), "renderer": "chatml"},
        train={"batch_size": 4, "precision": "fp32", "max_length": 64, "max_steps": 4, "epochs": 9},
        checkpoint={"every": 2}, evaluate={"every": 2},
    )  # fmt: skip
    monkeypatch.setenv("FT_CACHE", str(tmp_path / "cache"))
    finetooth.run(given)
    whole = tmp_path / "whole"
    shutil.copytree(tmp_path / "run", whole)
    for name in ("artifact", "checkpoints/step-4"):
        shutil.rmtree(tmp_path / "run" / name)
    (tmp_path / "run" / "result.json").unlink()
    monkeypatch.setenv("FT_CACHE", str(tmp_path / "another"))  # as on another machine
    assert finetooth.resume(tmp_path / "run").steps == 4
    assert differences(left(whole), left(tmp_path / "run")) == []
