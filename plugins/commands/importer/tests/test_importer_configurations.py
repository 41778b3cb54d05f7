"""Public example configurations, their keys and values: of axolotl (July 2026), LLaMA-Factory (August 2026), and
(November 2026) torchtune, Unsloth's scripts, AutoTrain, mlx-lm and mud-puppy; and recipes that name a base, a corpus
and a channel, made for the test."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from finetooth_hooks import UserError
from finetooth_importer import files
from finetooth_importer.account import TAKEN, flattened
from finetooth_importer.command import read_tool
from finetooth_importer.written import as_yaml, tidied

HERE = Path(__file__).parent / "configurations"


def configurations(tool: str) -> dict[str, dict[str, object]]:
    lines = (HERE / f"{tool}.jsonl").read_text(encoding="utf-8").splitlines()
    return {row["name"]: row["given"] for row in map(json.loads, lines)}


COUNTS = {
    "axolotl": 60,
    "llamafactory": 60,
    "torchtune": 40,
    "unsloth": 40,
    "autotrain": 12,
    "mlx-lm": 5,
    "mud-puppy": 18,
    "corpus-recipe": 4,
}


@pytest.mark.parametrize("tool", COUNTS)
def test_nine_keys_of_ten_are_taken_and_none_is_lost(tool: str) -> None:
    given = configurations(tool)
    assert len(given) >= COUNTS[tool]
    counts: Counter[str] = Counter()
    for name, keys in given.items():
        assert files.tool_of(keys) == tool, name
        account = read_tool(keys, tool)
        told = Counter(line.key for line in account if line.outcome != "default")
        assert {key: told[key] for key in account.given} == dict.fromkeys(account.given, 1), name
        for line in account:
            assert line.note or line.outcome in ("taken", "default", "no effect"), (name, line)
            if line.key in account.given and line.outcome != "default":
                counts["taken" if line.outcome in TAKEN else "left"] += 1
    assert counts["taken"] / counts.total() >= 0.9, counts


@pytest.mark.parametrize("tool", COUNTS)
def test_every_recipe_is_one(tool: str) -> None:
    """The YAML that is written says the recipe, and the recipe's reader takes it."""
    recipe = pytest.importorskip("finetooth_core.settings.recipe")
    yaml = pytest.importorskip("yaml")
    for name, keys in configurations(tool).items():
        account = read_tool(keys, tool)
        made = tidied(account.recipe)
        assert yaml.safe_load(as_yaml(account, tool, name)) == made, name
        assert "&id" not in as_yaml(account, tool, name), name  # what stands twice is written twice
        recipe.load(made)
        sources = made.get("data", {}).get("train", [])
        for source in sources if isinstance(sources, list) else [sources]:
            if isinstance(source, dict):
                assert source["name"] in ("datasets", "jsonl", "tables", "text"), name


def test_numbers_mean_the_same() -> None:
    keys = configurations("llamafactory")
    for name, given in keys.items():
        made = read_tool(given, "llamafactory").recipe
        each, steps = given.get("per_device_train_batch_size", 8), given.get("gradient_accumulation_steps", 1)
        assert made["train"]["batch_size"] == each * steps, name
        assert made["train"]["seed"] == given.get("seed", 42)
        if given.get("finetuning_type") == "lora":
            low = made["adapter"]
            assert (low["rank"], low["alpha"]) == (
                given.get("lora_rank", 8),
                given.get("lora_alpha", 2 * given.get("lora_rank", 8)),
            )


@pytest.mark.parametrize(
    ("tool", "key", "value"),
    [
        ("axolotl", "datasets", 3),
        ("axolotl", "max_steps", "many"),
        ("axolotl", "val_set_size", [1]),
        ("llamafactory", "dataset", 1.5),
        ("mlx-lm", "lr_schedule.arguments", ["a"]),
        ("torchtune", "model.lora_attn_modules", 3),
        ("unsloth", "report_to", [[1]]),
    ],
)
def test_a_value_that_cannot_be_read_is_named(tool: str, key: str, value: object) -> None:
    given = next(keys for keys in map(flattened, configurations(tool).values()) if key in keys)
    with pytest.raises(UserError) as refused:
        read_tool(given | {key: value}, tool, Path("theirs.yml"))
    assert f"{key}: {value} cannot be read (correct the value, or leave it out)" in str(refused.value)
