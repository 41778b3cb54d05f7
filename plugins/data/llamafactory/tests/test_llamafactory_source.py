"""Datasets by their name in a `dataset_info.json`: what is taken, what is named, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from finetooth_hooks import DataError, RecipeError
from finetooth_kit import FakeContext, parametrize_with_checks
from finetooth_llamafactory.plugin import claims
from finetooth_llamafactory.source import LlamaFactoryOptions, build


@parametrize_with_checks("finetooth_llamafactory.plugin")
def test_conforms(check: Any) -> None:
    check()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    listed = {
        "faq": {"file_name": "faq.jsonl"},
        "talks": {"hf_hub_url": "org/talks", "formatting": "sharegpt", "subset": "en"},
        "films": {
            "file_name": "faq.jsonl",
            "num_samples": 1,
            "columns": {"response": "output", "videos": "v", "promt": "x"},
        },
        "run": {"script_url": "code"},
        "odd": {"file_name": "faq.jsonl", "formatting": "free"},
        "pairs": {"file_name": "faq.jsonl", "ranking": True},
    }  # fmt: skip
    (tmp_path / "data").mkdir()
    (tmp_path / "data/dataset_info.json").write_text(json.dumps(listed), encoding="utf-8")
    row = {"instruction": "Hi", "output": "Hello."}
    (tmp_path / "data/faq.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    return tmp_path / "data"


def test_claims_the_folder_the_file_and_names_behind_them(folder: Path) -> None:
    for reference in (
        f"{folder}",
        f"{folder}:faq",
        f"{folder}/dataset_info.json",
        f"{folder}/dataset_info.json:faq,talks",
    ):
        assert claims(reference) is not None, reference
    for reference in ("", f"{folder}/faq.jsonl", f"{folder.parent}:faq", "org/name", "https://a.org/data:faq", "a\0b"):
        assert claims(reference) is None, reference


def test_a_folder_that_the_library_saved_is_not_its_own(tmp_path: Path) -> None:
    (tmp_path / "dataset_info.json").write_text('{"features": {}, "splits": {}}', encoding="utf-8")
    assert claims(str(tmp_path)) is None


def test_it_stands_for_the_sources_that_read_the_rows(folder: Path) -> None:
    context = FakeContext(folder, installed=True)
    built = build(LlamaFactoryOptions(path=f"{folder}:faq,talks"), context)
    first, second = built.stands_for()
    assert first["name"] == "jsonl" and Path(first["path"]) == folder / "faq.jsonl"
    assert first["format"]["name"] == "instruction" and first["format"]["history"] == ""
    assert {key: second[key] for key in ("name", "path", "split", "config")} == {
        "name": "datasets", "path": "org/talks", "split": "train", "config": "en",
    }  # fmt: skip
    assert second["format"]["column"] == "conversations"
    alone = build(LlamaFactoryOptions(path=str(folder), datasets=["faq"]), context)
    assert [row.values["output"] for row in alone.rows()] == ["Hello."]
    assert alone.files() == (folder / "dataset_info.json", folder / "faq.jsonl")


def test_what_is_not_taken_is_named(folder: Path) -> None:
    context = FakeContext(folder, installed=True)
    (pick,) = build(LlamaFactoryOptions(path=f"{folder}:films"), context).stands_for()
    assert pick["max_rows"] == 1
    notes = "\n".join(context.notes)
    assert "columns.videos is not taken: rows of instructions have none" in notes
    assert "columns.promt is not taken: unknown key; did you mean prompt?" in notes
    assert "num_samples: finetooth takes the first rows" in notes


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        (":fak", "no dataset 'fak' in it.*did you mean faq"),
        ("", "lists .*name those you mean"),
        (":faq,faq", "faq is named twice"),
        (":run", "script_url is not taken.*write its rows to a file"),
        (":odd", "formatting is not taken.*alpaca, sharegpt, openai"),
        (":pairs", "ranking is not taken.*columns.chosen"),
    ],
)
def test_what_cannot_be_read_is_refused_in_one_line(folder: Path, reference: str, said: str) -> None:
    with pytest.raises((DataError, RecipeError), match=said) as error:
        build(LlamaFactoryOptions(path=f"{folder}{reference}"), FakeContext(folder, installed=True))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["{", "[]", '{"faq": 3}'])
def test_a_broken_list_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "dataset_info.json").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=r"dataset_info\.json"):
        build(LlamaFactoryOptions(path=f"{tmp_path}/dataset_info.json:faq"), FakeContext(tmp_path, installed=True))
