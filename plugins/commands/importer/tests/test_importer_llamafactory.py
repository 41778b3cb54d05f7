"""LLaMA-Factory: its list of datasets, and its templates."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from finetooth_importer.account import Account
from finetooth_importer.command import read_tool

Outcomes = Callable[[Account], dict[str, tuple[str, str]]]


@pytest.mark.parametrize(("here", "written"), [(".", "data/faq.json"), ("data", "faq.json"), ("else", "")])
def test_rows_are_named_from_the_current_folder_if_they_lie_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, here: str, written: str
) -> None:
    """So that a recipe may be moved with its rows, and shared."""
    for folder in ("data", "else"):
        (tmp_path / folder).mkdir()
    monkeypatch.chdir(tmp_path / here)
    (tmp_path / "data/dataset_info.json").write_text('{"faq": {"file_name": "faq.json"}}', encoding="utf-8")
    given = {"model_name_or_path": "m", "stage": "sft", "dataset": "faq"}
    account = read_tool(given, "llamafactory", tmp_path / "run.yaml")
    assert account.recipe["data"]["train"]["path"] == (written or str(tmp_path / "data/faq.json"))


def test_llamafactory_reads_its_list_of_datasets(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    listed = {
        "faq": {"file_name": "faq.json", "columns": {"prompt": "q", "response": "a"}},
        "talks": {"hf_hub_url": "org/talks", "formatting": "sharegpt", "columns": {"messages": "turns"}},
        "seen": {
            "file_name": "seen.json",
            "formatting": "sharegpt",
            "columns": {"messages": "turns", "images": "pictures", "tools": "calls", "videos": "films"},
        },
        "pairs": {"file_name": "pairs.json", "ranking": True, "columns": {"chosen": "good", "rejected": "bad"}},
    }
    (tmp_path / "data/dataset_info.json").write_text(json.dumps(listed), encoding="utf-8")
    given = {"model_name_or_path": "m", "stage": "sft", "dataset": "faq, talks, seen, pairs, other", "lora_rank": 4}
    account = read_tool(given, "llamafactory", tmp_path / "run.yaml")
    assert account.recipe["data"]["train"] == [
        {
            "name": "tables",
            "path": str(tmp_path / "data/faq.json"),
            "format": {
                "name": "instruction",
                "instruction": "q",
                "input": "",
                "output": "a",
                "separator": "\n",
                "system_column": "",
                "history": "",
            },
        },
        {
            "name": "datasets",
            "path": "org/talks",
            "split": "train",
            "format": {
                "name": "chat",
                "column": "turns",
                "tools": "",
                "system_column": "",
                "fields": {"role": "from", "content": "value"},
            },
        },
        {
            "name": "tables",
            "path": str(tmp_path / "data/seen.json"),
            "format": {
                "name": "chat",
                "column": "turns",
                "tools": "calls",
                "system_column": "",
                "fields": {"role": "from", "content": "value"},
                "images": "pictures",
                "videos": "films",
            },
        },
        {
            "name": "tables",
            "path": str(tmp_path / "data/pairs.json"),
            "format": {
                "name": "preference",
                "chosen": "good",
                "rejected": "bad",
                "tools": "",
                "system_column": "",
            },
        },
        "other",
    ]
    (line,) = [line for line in account if line.key == "dataset"]
    assert line.outcome == "otherwise" and "other is not in dataset_info.json" in line.note
    assert not [line for line in account if line.key.startswith("dataset.seen.")]
    assert account.recipe["adapter"] == {"name": "lora", "rank": 4, "alpha": 8}
    assert account.recipe["train"]["max_length"] == 2048 and account.recipe["train"]["epochs"] == 3.0


def test_a_template_has_what_it_was_called_before() -> None:
    given = {"model_name_or_path": "m", "stage": "sft", "dataset": "rows.jsonl"}
    now, before = (read_tool(given | {"template": name}, "llamafactory") for name in ("gpt_oss", "gpt"))
    assert now.recipe == before.recipe
    assert now.recipe["data"]["renderer"] == {"name": "harmony", "keep_reasoning": True}
    assert [line.note for line in before if line.key == "template"] == [
        line.note for line in now if line.key == "template"
    ]


def test_what_one_file_switches_off_is_nothing_to_the_next() -> None:
    given = {"model_name_or_path": "m", "stage": "sft", "dataset": "rows.jsonl", "template": "qwen3"}
    first = read_tool(given, "llamafactory").recipe["data"]["renderer"]
    off = read_tool({**given, "enable_thinking": False}, "llamafactory").recipe["data"]["renderer"]
    assert off == {**first, "thinking": False} != first
    assert read_tool(given, "llamafactory").recipe["data"]["renderer"] == first


@pytest.mark.parametrize(
    ("template", "renderer", "outcome"),
    [
        ("qwen3", {"name": "qwen3", "keep_reasoning": True, "thinking": False}, "taken"),
        ("deepseekr1", {"name": "deepseek_r1", "keep_reasoning": True, "thinking": False}, "taken"),
        ("gpt_oss", {"name": "harmony", "keep_reasoning": True}, "not taken"),
        ("cohere", "auto", "no effect"),
    ],
)
def test_thinking_is_switched_off_where_a_renderer_can(
    template: str, renderer: Any, outcome: str, outcomes: Outcomes
) -> None:
    from finetooth_core.plugins.catalog import INDEX

    account = read_tool(
        {"model_name_or_path": "m", "stage": "sft", "dataset": "rows.jsonl", "template": template,
         "enable_thinking": False},
        "llamafactory",
    )  # fmt: skip
    assert account.recipe["data"]["renderer"] == renderer
    assert outcomes(account)["enable_thinking"][0] == outcome
    name = renderer["name"] if isinstance(renderer, dict) else renderer
    assert name == "auto" or name in json.loads(INDEX.read_text(encoding="utf-8"))["renderer"]
