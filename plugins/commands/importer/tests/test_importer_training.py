"""Which tokens train, and where that was compared with nobody."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from finetooth_importer.command import read_tool, uncompared


def test_what_trains_is_decided_by_the_rows_of_trl(tmp_path: Path) -> None:
    """Texts are read without markup, conversations train whole, one column of text is pre-training; unseen rows are
    said to be unseen."""
    given = {"trainer": "sft", "model": "m", "dataset_name": "rows.jsonl"}
    said = {"role": "user", "content": "a"}
    for row, data, method in (
        ({"prompt": "a", "completion": "b"}, {"name": "prompt_completion", "style": "raw"}, ("sft", "assistant")),
        ({"prompt": [said], "completion": [said]}, None, ("sft", "all")),
        ({"messages": [said]}, None, ("sft", "all")),
        ({"text": "a"}, None, ("pretrain", None)),
    ):
        (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
        made = read_tool(given, "trl", tmp_path / "train.py").recipe
        assert made["data"].get("format") == data
        assert (made["method"]["name"], made["method"].get("train_on")) == method
    assert read_tool(given | {"completion_only_loss": True}, "trl").recipe["method"]["train_on"] == "assistant"
    assert read_tool(given | {"assistant_only_loss": False}, "trl").recipe["method"]["train_on"] == "all"
    (line,) = (line for line in read_tool(given, "trl") if line.setting == "method.train_on")
    assert "the rows were not seen" in line.note


def test_rows_of_axolotls_alpaca_keep_its_prompt() -> None:
    """Alone they are written by the renderer that has it; beside others they are not, and the list says so."""
    alpaca, chat = {"path": "rows.jsonl", "type": "alpaca"}, {"path": "chats.jsonl", "type": "chat_template"}
    account = read_tool({"base_model": "m", "datasets": [alpaca], "chat_template": "chatml"}, "axolotl")
    assert account.recipe["data"]["renderer"] == {"name": "alpaca", "preamble": True}
    assert account.recipe["data"]["train"]["format"] == {"name": "instruction", "separator": "\n\n### Input:\n"}
    (line,) = (line for line in account if line.key == "datasets[0].type")
    assert (line.outcome, line.setting) == ("otherwise", "data.renderer")
    mixed = read_tool({"base_model": "m", "datasets": [alpaca, chat], "chat_template": "chatml"}, "axolotl")
    assert mixed.recipe["data"]["renderer"] == {"name": "chatml", "default_system": ""}
    (line,) = (line for line in mixed if line.key == "datasets[0].type")
    assert line.outcome == "otherwise" and "a prompt of Alpaca's" in line.note


def test_what_trains_and_was_compared_with_nobody_is_said(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps({"messages": []}) + "\n", encoding="utf-8")
    talks, alpaca = ({"path": "rows.jsonl", "type": kind} for kind in ("chat_template", "alpaca"))
    cases: list[tuple[str, dict[str, Any], bool]] = [
        ("axolotl", {"base_model": "m", "datasets": [{"path": "rows.jsonl", "type": "alpaca"}]}, True),
        ("axolotl", {"base_model": "m", "pretraining_dataset": "rows.jsonl"}, False),
        ("axolotl", {"base_model": "m", "datasets": [talks], "chat_template": "llama3"}, False),
        ("axolotl", {"base_model": "m", "datasets": [talks], "chat_template": "phi_4"}, True),
        ("axolotl", {"base_model": "m", "datasets": [talks, alpaca], "chat_template": "llama3"}, True),
        ("llamafactory", {"model_name_or_path": "m", "dataset": "faq", "template": "qwen3"}, False),
        ("llamafactory", {"model_name_or_path": "m", "dataset": "faq", "template": "bailing"}, True),
        ("llamafactory", {"model_name_or_path": "m", "dataset": "faq"}, True),
        ("trl", {"trainer": "sft", "model": "m", "dataset_name": "rows.jsonl"}, False),
        ("trl", {"trainer": "sft", "model": "m", "dataset_name": "org/rows"}, True),
        ("trl", {"trainer": "grpo", "model": "m", "dataset_name": "org/rows"}, False),
    ]
    for tool, given, doubted in cases:
        said = uncompared(read_tool(given, tool, tmp_path / "run.py"), tool)
        assert bool(said) == doubted, (tool, given, said)
        assert not doubted or said == f"The tokens that train were not compared with those of {tool} for such rows"


@pytest.mark.parametrize(("value", "place"), [(True, "host"), ("legacy", "host"), ("disk", "disk")])
def test_what_leaves_the_device_of_axolotl(value: object, place: str) -> None:
    account = read_tool({"base_model": "m", "activation_offloading": value, "layer_offloading": True}, "axolotl")
    assert account.recipe["backend"] == {"name": "torch", "activations": place, "layers": "host"}
    off = read_tool({"base_model": "m", "activation_offloading": False, "layer_offloading": False}, "axolotl")
    assert "backend" not in off.recipe and {line.outcome for line in off if "offloading" in line.key} == {"no effect"}
