"""The recipe's YAML: YAML 1.2 scalars, nothing silently kept or dropped, no objects."""

from __future__ import annotations

import json
from typing import Any

import pytest
from finetooth_hooks import RecipeError
from finetooth_recipes.yaml_text import plain, read_yaml, write_yaml
from hypothesis import example, given
from hypothesis import strategies as st


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2e-4", 2e-4),  # text in YAML 1.1
        ("2E4", 2e4),
        ("-1.5e+3", -1500.0),
        (".5", 0.5),
        ("5.", 5.0),
        ("on", "on"),  # booleans in YAML 1.1
        ("off", "off"),
        ("yes", "yes"),
        ("no", "no"),
        ("y", "y"),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("12", 12),
        ("-3", -3),
        ("010", 10),  # 8 in YAML 1.1
        ("0x1F", 31),
        ("0o17", 15),
        ("1_000", "1_000"),
        ("1:30", "1:30"),  # 90 in YAML 1.1
        ("2024-01-01", "2024-01-01"),  # a date in YAML 1.1
        ("1.2.3", "1.2.3"),
        (".inf", float("inf")),
        ("-.INF", float("-inf")),
        ("nan", "nan"),
        ("e5", "e5"),
        ("9" * 5000, "9" * 5000),
    ],
)
def test_plain_scalars_follow_the_core_schema_of_yaml_1_2(text: str, value: Any) -> None:
    for read in (plain(text), read_yaml(f"key: {text}", "r.yaml").value["key"]):
        assert read == value
        assert type(read) is type(value)


def test_quotes_make_text() -> None:
    assert read_yaml("a: '1'\nb: \"true\"\nc: ''\nd: |\n  2e-4", "r.yaml").value == {
        "a": "1",
        "b": "true",
        "c": "",
        "d": "2e-4",
    }


def test_keys_are_texts() -> None:
    assert read_yaml("1: a\non: b\nnull: c", "r.yaml").value == {"1": "a", "on": "b", "null": "c"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\nb: 2\na: 3", "a: given twice, at r.yaml:1 and r.yaml:3"),
        ("train:\n  seed: 1\n  seed: 2", "train.seed: given twice, at r.yaml:2 and r.yaml:3"),
        ("e: [{a: 1, a: 2}]", "e.0.a: given twice"),
        ("a: 1\n1: x\n'1': y", "1: given twice"),
        (
            "a: !!python/object/apply:os.system [ls]",
            "r.yaml:1: the tag '!!python/object/apply:os.system' is not allowed",
        ),
        ("a:\n  b: !!python/name:os.system", "r.yaml:2: the tag '!!python/name:os.system'"),
        ("!!map {a: 1}", "the tag '!!map'"),
        ("a: !custom 1", "the tag '!custom'"),
        ("a: !!str 1", "the tag '!!str'"),
        ("<<: {a: 1}", "merge keys"),
        ("? [a, b]\n: c", "a key must be a text"),
        ("'': c", "a key must be a text"),
        ("a: &x [*x]", "an alias refers to what it is part of"),
        ("a: *nowhere", "undefined alias"),
        ("a: [1", "r.yaml:1: not valid YAML"),
        ("a: b: c", "r.yaml:1: not valid YAML: two colons in one line"),
        ("a: 1\n\tb: 2", "r.yaml:2: not valid YAML"),
        ("a: 1\n---\nb: 2", "r.yaml:2: not valid YAML"),
        ("a: '\x07'", "#x0007"),
        ("[" * 5000, "nested too deeply"),
    ],
)
def test_what_is_refused(text: str, said: str) -> None:
    with pytest.raises(RecipeError) as raised:
        read_yaml(text, "r.yaml")
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


def test_an_alias_repeats_a_value_but_not_without_end() -> None:
    assert read_yaml("a: &x [1]\nb: *x", "r.yaml").value == {"a": [1], "b": [1]}
    bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n"
    bomb += "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 9))
    with pytest.raises(RecipeError, match="more than 100000 values"):
        read_yaml(bomb, "r.yaml")


def test_lines_are_known() -> None:
    lines = read_yaml("a: 1\nb:\n  - c\n  - d: 2\n", "r.yaml").lines
    assert lines[("b",)] == 2
    assert lines[("b", 1, "d")] == 4


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=("Cs", "Cc"))).filter(lambda text: "\ufeff" not in text)
)
KEYS = st.text(st.characters(categories=("L", "N", "P")), min_size=1).filter(lambda key: key != "<<")
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(KEYS, inner), max_leaves=12)


@given(st.dictionaries(KEYS, VALUES))
@example({"a": "2e-4", "b": 1e22, "c": "on", "d": "0o7", "e": "1_0", "f": "a\nb", "g": 5e-324, "h": "2024-01-01"})
def test_what_is_written_is_read_back(value: dict[str, Any]) -> None:
    read = read_yaml(write_yaml(value), "r.yaml").value
    assert read == value
    assert json.dumps(read) == json.dumps(value)  # 1, 1.0 and true are equal in Python, not here
