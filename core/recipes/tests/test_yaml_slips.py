"""Slips in YAML get the cure, not what the parser says."""

from __future__ import annotations

from pathlib import Path

import pytest
from finetooth_core.settings.recipe import load
from finetooth_hooks import RecipeError
from finetooth_recipes.yaml_text import read_yaml
from hypothesis import given
from hypothesis import strategies as st

SLIPS = [
    ("train: {max_steps:3}", "r.yaml:2: no space behind the colon: max_steps:3 (write max_steps: 3)"),
    ("data: {eval: {fraction:0.3}}", "r.yaml:2: no space behind the colon: fraction:0.3 (write fraction: 0.3)"),
    ("adapter: {name: lora, rank:8}", "r.yaml:2: no space behind the colon: rank:8 (write rank: 8)"),
    ("train:{max_steps: 3}", "r.yaml:2: no space behind the colon: train:{max_steps (write train: {max_steps ...)"),
    (
        "train:\n  max_steps:3",
        "got the text 'max_steps:3', at r.yaml:2 (write max_steps: 3)",
    ),
    ("train:\n  seed = 3", "train: expected a mapping, got the text 'seed = 3', at r.yaml:2 (write seed: 3)"),
    (
        "train:\n  max_steps:3\n  seed: 1",
        "r.yaml:4: not valid YAML: the line before has no space behind its colon: max_steps:3 (write max_steps: 3)",
    ),
    ("train:\n\tseed: 3", "r.yaml:3: not valid YAML: a tab, where YAML takes spaces only (replace it by spaces)"),
    ("train: seed: 3", "r.yaml:2: not valid YAML: two colons in one line (write a section as SECTION: {key: value}"),
    (" train: {seed: 3}", "r.yaml:2: not valid YAML: the indentation does not fit (begin settings of one level in"),
    (
        "train: {seed: 3",
        "the { that opens in line 2 is not closed, or a comma is missing in it (write {key: ",
    ),
    (
        "trackers: [a, b",
        "the [ that opens in line 2 is not closed, or a comma is missing in it (write [item, ",
    ),
    ("train: {seed: 3}}", "r.yaml:2: not valid YAML: } closes nothing (remove it)"),
    ("output: 'x", "not valid YAML: the quote that opens in line 2 is not closed (close it)"),
    ("output: @x", "r.yaml:2: not valid YAML: a text cannot begin with @ (put quotes around the text)"),
    ("output: *x", "r.yaml:2: not valid YAML: undefined alias 'x' (put quotes around a text that begins"),
    ('output: "C:\\data"', "r.yaml:2: not valid YAML: unknown escape character 'd' (use single quotes"),
    ("---\ntrain: {}", "r.yaml:2: not valid YAML: a second document begins (keep one recipe"),
    ("train: {seed: 1,5}", "r.yaml:2: the key 5 has no value (write 5: VALUE, null for none; put quotes around"),
    ("train: {seed:}", "r.yaml:2: the key seed has no value (write seed: VALUE, null for none"),
    (
        "train: {\u201cseed\u201d: 3}",
        "the key \u201cseed\u201d has typographic quotes (write it without quotes)",
    ),
    *(
        (text, f"the colon after {key} is a full-width one (write {key}: VALUE)")
        for text, key in (
            ("train: {seed\uff1a 3}", "seed"),
            ("train\uff1a {seed: 3}", "train"),
            ("output\uff1a x\ntrain: {seed: 3}", "output"),
            ("train:\n  seed\uff1a3\n  max_steps: 1", "seed"),
        )
    ),
    ("train:\u00a0{seed: 3}", "holds a space character that YAML does not know (write an ordinary space)"),
    ("train: {seed: 1}\ntrain: {seed: 2}", "train: given twice, at r.yaml:2 and r.yaml:3 (keep one of them)"),
    (
        "train: {shuffle: no}",
        "train.shuffle: expected true or false or one of shortest_first, longest_first, got the text 'no', at r.yaml:2 (write false)",  # noqa: E501
    ),
    (
        "train: {shuffle: On}",
        "train.shuffle: expected true or false or one of shortest_first, longest_first, got the text 'On', at r.yaml:2 (write true)",  # noqa: E501
    ),
    ("train: {seed: 1e3}", "train.seed: expected a whole number, got the number 1000.0, at r.yaml:2 (write 1000)"),
    ("train: {seed: 1_000}", "train.seed: expected a whole number, got the text '1_000', at r.yaml:2 (write 1000)"),
    ("train: {max_steps: None}", "expected a whole number, got the text 'None', at r.yaml:2 (write null for none)"),
    ("train: {max_grad_norm: '1e-4'}", "got the text '1e-4', at r.yaml:2 (write it without quotes)"),
]


@pytest.mark.parametrize(("text", "said"), SLIPS, ids=[slip[0] for slip in SLIPS])
def test_a_slip_is_told_with_its_cure(text: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("r.yaml").write_text(f"model: toy\n{text}\n", encoding="utf-8")
    with pytest.raises(RecipeError) as told:
        load("r.yaml")
    assert said in str(told.value)
    assert "\n" not in str(told.value)


def test_what_is_meant_is_left_alone() -> None:
    text = """
        a: 1e-4
        http://host/x: {data/a.jsonl: "x", 'b:c': 1, "d:e": null, f: '', g: ~}
        h: "a: b"
        i: [x:y, "p, q"]
        j: say “hi” a:b
    """
    assert read_yaml(text, "r.yaml").value == {
        "a": 1e-4,
        "http://host/x": {"data/a.jsonl": "x", "b:c": 1, "d:e": None, "f": "", "g": None},
        "h": "a: b",
        "i": ["x:y", "p, q"],
        "j": "say “hi” a:b",
    }


@given(st.text(alphabet="ab:{}[],'\"-# \t\n0.\u00a0\uff1a&*@", max_size=30))
def test_any_text_is_read_or_refused_in_one_line(text: str) -> None:
    try:
        read_yaml(text, "r.yaml")
    except RecipeError as error:
        assert "\n" not in str(error)
        assert error.action
