"""How many steps there are, what one is made of, and when something happens: as the tool counts them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from finetooth_hooks import DataReport, UserError
from finetooth_importer import packing
from finetooth_importer.account import Account
from finetooth_importer.command import read_tool

Outcomes = Callable[[Account], dict[str, tuple[str, str]]]

TOOLS: dict[str, dict[str, Any]] = {
    "axolotl": {"base_model": "m", "datasets": [{"path": "a.jsonl"}], "val_set_size": 0.1, "sequence_len": 64},
    "llamafactory": {"model_name_or_path": "m", "stage": "sft", "dataset": "a.jsonl", "val_size": 0.1,
                     "eval_strategy": "steps"},
    "trl": {"trainer": "sft", "model": "m", "dataset_name": "a.jsonl", "eval_strategy": "steps"},
}  # fmt: skip
"""The least of each tool that hands these keys on to transformers."""
EPOCHS = {"axolotl": "num_epochs", "llamafactory": "num_train_epochs", "trl": "num_train_epochs"}


@pytest.mark.parametrize("tool", TOOLS)
def test_below_one_a_number_of_steps_is_a_share_of_the_run(tool: str) -> None:
    """As transformers reads it: rounded up to whole steps where the run has so many, else a part of its epochs."""
    shares = {"eval_steps": 0.1, "save_steps": "0.25", "warmup_steps": 0.1}
    made = read_tool({**TOOLS[tool], **shares, "max_steps": 33}, tool).recipe
    assert (made["evaluate"]["every"], made["checkpoint"]["every"]) == (4, 9)
    assert made["schedule"]["warmup_ratio"] == 0.1 and "warmup_steps" not in made["schedule"]
    made = read_tool({**TOOLS[tool], **shares, EPOCHS[tool]: 4}, tool).recipe
    assert (made["evaluate"]["every"], made["checkpoint"]["every"]) == ("0.4 epochs", "epoch")
    made = read_tool({**TOOLS[tool], "eval_steps": 5, "warmup_steps": 3.0}, tool).recipe
    assert (made["evaluate"]["every"], made["schedule"]["warmup_steps"]) == (5, 3)


@pytest.mark.parametrize("tool", ["llamafactory", "trl"])
def test_no_warm_up_is_none(tool: str) -> None:
    """transformers warms up only where it is told to; our cosine does by itself, and its constant never does."""
    key = "lr_scheduler_type"
    made = read_tool({**TOOLS[tool], key: "cosine"}, tool)
    assert made.recipe["schedule"] == {"name": "cosine", "warmup_steps": 0}
    assert [line.outcome for line in made if line.key == "warmup_steps"] == ["default"]
    for none in ({"warmup_steps": 0}, {"warmup_ratio": 0.0}):
        assert read_tool({**TOOLS[tool], key: "cosine", **none}, tool).recipe["schedule"]["warmup_steps"] == 0
    assert read_tool({**TOOLS[tool], key: "constant", "warmup_steps": 9}, tool).recipe["schedule"] == {
        "name": "constant"
    }
    made = read_tool({**TOOLS[tool], key: "constant_with_warmup", "warmup_steps": 9}, tool).recipe
    assert made["schedule"] == {"name": "constant", "warmup_steps": 9}


def test_axolotl_warms_up_by_itself() -> None:
    """3 % of the steps, 100 at most (core/builders/base.py)."""
    for more, wanted in (
        ({"max_steps": 200}, {"warmup_steps": 6}),
        ({"max_steps": 9000}, {"warmup_steps": 100}),
        ({"num_epochs": 2, "max_steps": -1}, {"warmup_ratio": 0.03}),
        ({"warmup_ratio": 0.1}, {"warmup_ratio": 0.1}),
        ({"warmup_steps": 0}, {"warmup_steps": 0}),
    ):
        account = read_tool({**TOOLS["axolotl"], **more}, "axolotl")
        assert account.recipe["schedule"] == {"name": "cosine", **wanted}, more
        assert not [line for line in account if line.outcome == "not taken"]


def test_several_times_an_epoch_and_how_long_to_wait(outcomes: Outcomes) -> None:
    given = {**TOOLS["axolotl"], "evals_per_epoch": 4, "saves_per_epoch": 3, "early_stopping_patience": 3}
    made = read_tool(given, "axolotl").recipe
    assert (made["evaluate"]["every"], made["checkpoint"]["every"]) == ("0.25 epochs", "0.333333 epochs")
    assert made["train"]["early_stopping"] == {"patience": 3, "metric": "eval/loss"}
    steps = {**TOOLS["axolotl"], "eval_steps": 10, "early_stopping_patience": 3}
    assert read_tool(steps, "axolotl").recipe["train"]["early_stopping"]["patience"] == 3
    assert read_tool(TOOLS["axolotl"], "axolotl").recipe["evaluate"]["every"] == "epoch"  # theirs where nothing is said
    without = read_tool({**given, "val_set_size": 0, "evals_per_epoch": 0}, "axolotl")
    assert (
        outcomes(without)["early_stopping_patience"][0] == "no effect"
        and "early_stopping" not in without.recipe["train"]
    )


def packs(tool: str, given: dict[str, Any]) -> Account:
    (Path("a.jsonl")).write_text('{"text": "a"}\n', encoding="utf-8")
    return read_tool(given, tool)


@pytest.mark.parametrize(
    ("tool", "more"),
    [
        ("axolotl", {"sample_packing": True, "micro_batch_size": 2, "gradient_accumulation_steps": 4,
                     "sequence_len": 2048}),
        ("llamafactory", {"packing": True, "gradient_accumulation_steps": 1, "cutoff_len": 2048}),
        ("llamafactory", {"neat_packing": True, "gradient_accumulation_steps": 1, "cutoff_len": 2048}),
        ("trl", {"packing": True, "max_length": 2048}),
        ("torchtune", {"dataset": {"_component_": "torchtune.datasets.chat_dataset", "source": "json", "packed": True,
                                   "data_files": "a.jsonl"}, "batch_size": 8, "tokenizer": {"max_seq_len": 2048}}),
        ("mud-puppy", {"mud_puppy": True, "model": "m", "dataset": "a.jsonl", "tokens_per_batch": 2048,
                       "gradient_accumulation": 8}),
        ("autotrain", {"model": "m", "data_path": "a.jsonl", "project_name": "p", "trainer": "sft",
                       "block_size": 2048}),
        ("unsloth", {"unsloth": True, "model_name": "m", "dataset_name": "a.jsonl", "packing": True,
                     "max_length": 2048}),
    ],
)  # fmt: skip
def test_a_step_of_packs_has_as_many_rows(
    tool: str, more: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """8 packs of 2,048 tokens are 16,384 tokens; 352 rows of 25,349 tokens are 72 each, so 228 rows have as many."""
    monkeypatch.chdir(tmp_path)
    account = packs(tool, {**TOOLS.get(tool, {}), **more})
    (line,) = [line for line in account if "packs of 2048 tokens" in line.note]
    assert line.outcome == "not taken" and "16,384 tokens" in line.note and account.recipe["train"]["batch_size"] == 8
    asked: list[Any] = []

    def planned(recipe: Any) -> list[DataReport]:
        asked.append(recipe)
        return [DataReport("train", 352, 352, tokens=25_349)]

    packing.fit(account, planned)
    assert account.recipe["train"]["batch_size"] == 228 and asked[0]["train"]["max_length"] == 2048
    (line,) = [line for line in account if "packs of 2048 tokens" in line.note]
    assert (line.outcome, line.setting) == ("otherwise", "train.batch_size")


def test_packs_whose_rows_cannot_be_counted_are_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(recipe: Any) -> Any:
        raise UserError("no model m")

    monkeypatch.chdir(tmp_path)
    given = {**TOOLS["trl"], "packing": True}
    account = packs("trl", given)
    packing.fit(account, refused)
    away = read_tool({**given, "dataset_name": "org/rows"}, "trl")
    packing.fit(away, lambda recipe: pytest.fail("rows of a hub are not fetched to be counted"))
    for one in (account, away):
        assert [line.outcome for line in one if line.key == "packing"] == ["not taken"]
    for method in ({"trainer": "dpo"}, {"packing": False}):
        (line,) = [line for line in read_tool({**given, **method}, "trl") if line.key == "packing"]
        assert line.outcome == "no effect"


@pytest.mark.parametrize(
    ("tool", "more", "wanted"),
    [
        ("llamafactory", {"stage": "rm"}, "drop"),
        ("llamafactory", {"stage": "dpo"}, "truncate_turns"),
        ("llamafactory", {}, "truncate_turns"),
        ("trl", {"trainer": "reward"}, "drop"),
        ("trl", {"trainer": "dpo"}, "truncate_answers"),
        ("trl", {"trainer": "kto"}, "truncate"),
    ],
)
def test_what_is_too_long_is_cut_as_there(tool: str, more: dict[str, Any], wanted: str) -> None:
    """TRL cuts each answer of a pair by itself, and leaves out what is scored; a method rm here refuses to cut."""
    account = read_tool({**TOOLS[tool], **more}, tool)
    assert account.recipe["train"]["excess_length"] == wanted
    if tool == "llamafactory":
        (line,) = [line for line in account if line.key == "cutoff_len"]
        assert line.outcome == "default"
        assert ("left out" in line.note) == (wanted == "drop")
    end = read_tool({**TOOLS["trl"], "truncation_mode": "keep_end"}, "trl")
    assert [line.outcome for line in end if line.key == "truncation_mode"] == ["not taken"]


def test_how_large_pictures_are_and_which_tokens_are_new(outcomes: Outcomes) -> None:
    given = {**TOOLS["llamafactory"], "image_max_pixels": 262144, "video_fps": 1.0}
    made = read_tool({**given, "template": "qwen2_vl"}, "llamafactory").recipe["data"]["processor"]
    assert made["image"] == {"max_pixels": 262144, "min_pixels": 1024} and made["name"] == "transformers"
    assert made["video"] == {"max_pixels": 65536, "min_pixels": 256, "fps": 1.0, "max_frames": 128}
    other = read_tool({**given, "template": "llava"}, "llamafactory")
    assert outcomes(other)["image_max_pixels"][0] == "not taken" and "processor" not in other.recipe["data"]
    plain = read_tool({**TOOLS["llamafactory"], "template": "llama3"}, "llamafactory")
    assert "processor" not in plain.recipe["data"] and "image_max_pixels" not in outcomes(plain)
    added = {"add_tokens": "<a>,<b>", "add_special_tokens": "<c>", "resize_vocab": True}
    made = read_tool({**TOOLS["llamafactory"], **added}, "llamafactory").recipe["model"]["added_tokens"]
    assert made == [{"token": "<a>", "special": False}, {"token": "<b>", "special": False}, "<c>"]
