"""Masks as axolotl 0.19.0 makes them under its own example configurations; `axolotl/record.py` recorded them with the
tool itself."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from finetooth_importer.account import Account
from finetooth_importer.tools import axolotl

HERE = Path(__file__).parent / "axolotl"
CONFIGURATIONS = HERE.parents[2] / "plugins/commands/importer/tests/configurations/axolotl.jsonl"
CASES = json.loads((HERE / "cases.json").read_text(encoding="utf-8"))


def imported(name: str, model: Path, folder: Path) -> Account:
    """What `ft import` makes of a configuration of theirs, with another model and rows of our own."""
    known = {one["name"]: one["given"] for one in map(json.loads, CONFIGURATIONS.read_text("utf-8").splitlines())}
    rows = folder / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in CASES["rows"][CASES["configurations"][name]["rows"]]))
    (about,) = known[name]["datasets"]
    datasets = [{**{k: v for k, v in about.items() if k not in ("split", "name")}, "path": str(rows)}]
    account = Account({**known[name], "base_model": str(model), "datasets": datasets, "val_set_size": 0})
    axolotl.read(account)
    return account


@pytest.mark.parametrize("name", CASES["configurations"])
def test_masks_are_theirs_or_the_importer_says_what_differs(
    name: str, weights: Path, byte_tokenizer: Any, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    import finetooth

    case, model = CASES["configurations"][name], tmp_path / "model"
    shutil.copytree(weights, model)
    byte_tokenizer.write_tokenizer(model, case)
    if "chat_template" in case:
        shared: Path = request.getfixturevalue("shared")
        shutil.copy(shared / f"templates/{case['chat_template']}.jinja", model / "chat_template.jinja")
    account = imported(name, model, tmp_path)
    about = {key: account.recipe[key] for key in ("model", "method", "data")}
    longest = account.recipe["train"]["max_length"]
    recipe = {**about, "train": {"max_length": longest, "max_steps": 1, "shuffle": False}, "trackers": []}
    found = []
    for datum in list(finetooth.session(recipe).job.method._data):
        tokens, trained = [*map(int, datum.tokens), int(datum.targets[-1])], [False, *map(bool, datum.mask)]
        labels = [token if trains else -100 for token, trains in zip(tokens, trained, strict=True)]
        found.append({"input_ids": tokens, "labels": labels})
    recorded = json.loads((HERE / "masks.json").read_text(encoding="utf-8"))
    assert recorded["axolotl"] == "0.19.0"
    told = [line for line in account if line.key.startswith("datasets[") and line.outcome == "not taken"]
    assert (found == recorded[name]) == (not told), told
    assert [line.key for line in told] == case.get("differ", [])
