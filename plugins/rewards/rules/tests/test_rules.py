"""Rules by answers that are right, wrong, tricky and hostile."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from finetooth_hooks import DataError
from finetooth_kit import parametrize_with_checks
from finetooth_rules import length, number, overlong, pattern, schema, tags
from pydantic import ValidationError


@parametrize_with_checks("finetooth_rules.plugin")
def test_conforms(check: Any) -> None:
    check()


@pytest.fixture
def score() -> Any:
    """The score of one answer by a rule."""

    def call(module: Any, options: Any, completion: str, **columns: Any) -> float | None:
        reward = module.build(options)
        return reward(["?"], [completion], {name: [value] for name, value in columns.items()})[0]  # type: ignore[no-any-return]

    return call


# --- number -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "expected", "right"),
    [
        ("It is 72.", "72", 1.0),
        ("72 apples", "#### 72", 1.0),
        ("$1,234.50", "1234.5", 1.0),
        ("\u2212 3? no, \u22123", "-3", 1.0),
        ("1e3", "1000", 1.0),
        (".5", "0.50", 1.0),
        ("-0", "0", 1.0),
        ("first 71, then 72", "72", 1.0),
        ("0.1000000000000000000001", "0.1", 0.0),  # equal as floats
        ("1,2", "12", 0.0),
        ("x2 and y72", "72", 0.0),
        ("seventy-two", "72", 0.0),
        ("", "72", 0.0),
        ("7 2", "72", 0.0),
        ("9" * 5000, "72", 0.0),
        ("72", "none at all", None),
        ("72", None, None),
    ],
)
def test_number(score: Any, said: str, expected: Any, right: float | None) -> None:
    assert score(number, number.NumberOptions(), said, answer=expected) == right


def test_number_options(score: Any) -> None:
    after = number.NumberOptions(after="####")
    assert score(number, after, "1 and #### 72", answer="72") == 1.0
    assert score(number, after, "72", answer="72") == 0.0
    assert score(number, number.NumberOptions(pick="first"), "72 of 80", answer="72") == 1.0
    assert score(number, number.NumberOptions(pick="only"), "72 of 80", answer="72") == 0.0
    near = number.NumberOptions(tolerance=0.1)
    assert score(number, near, "2.1", answer="2") == 1.0 and score(number, near, "2.11", answer="2") == 0.0
    share = number.NumberOptions(relative=0.01)
    assert score(number, share, "-101", answer="-100") == 1.0 and score(number, share, "-101.1", answer="-100") == 0.0
    with pytest.raises(DataError, match="reward number_match: no column 'answer'; there are: gold"):
        score(number, number.NumberOptions(), "1", gold="1")


# --- regex ------------------------------------------------------------------------------------------------------------


def test_regex(score: Any) -> None:
    digits = pattern.RegexOptions(pattern=r"\d+")
    assert score(pattern, digits, "is 42") == 1.0 and score(pattern, digits, "none") == 0.0
    whole = pattern.RegexOptions(pattern="yes|no", whole=True, ignore_case=True)
    assert score(pattern, whole, "No") == 1.0 and score(pattern, whole, "no, yes") == 0.0
    with pytest.raises(ValidationError, match="not a regular expression: missing"):
        pattern.RegexOptions(pattern="(a")


@pytest.mark.parametrize(("limited", "value"), [("zero", 0.0), ("none", None)])
def test_a_pattern_that_takes_for_ever_is_stopped(score: Any, limited: Any, value: float | None) -> None:
    forever = pattern.RegexOptions(pattern=r"(?:a|aa)+(?=b)c", time_limit=0.2, limited=limited)
    assert score(pattern, forever, "a" * 5000) == value


# --- format -----------------------------------------------------------------------------------------------------------

RIGHT = "<think>hm</think>\n<answer>4</answer>"


@pytest.mark.parametrize(
    ("said", "right"),
    [
        (RIGHT, 1.0),
        (f"\n {RIGHT} \n", 1.0),
        ("<think>a < b</think><answer><b>4</b></answer>", 1.0),
        ("<answer>4</answer><think>hm</think>", 0.0),
        (f"{RIGHT}<answer>5</answer>", 0.0),
        (f"{RIGHT} and so", 0.0),
        (f"so: {RIGHT}", 0.0),
        ("<think>hm<answer>4</answer></think>", 0.0),
        ("<think></think><answer>4</answer>", 0.0),
        ("<think>hm</think><answer>4", 0.0),
        ("<think>" * 20000, 0.0),
        ("", 0.0),
    ],
)
def test_format(score: Any, said: str, right: float) -> None:
    assert score(tags, tags.FormatOptions(), said) == right


def test_format_options(score: Any) -> None:
    assert score(tags, tags.FormatOptions(filled=False), "<think></think><answer>4</answer>") == 1.0
    assert score(tags, tags.FormatOptions(opened=True), "hm</think><answer>4</answer>") == 1.0
    assert score(tags, tags.FormatOptions(partial=True), "<think>hm</think> 4") == 0.25
    with pytest.raises(ValidationError, match="each once"):
        tags.FormatOptions(tags=["a", "a"])


# --- length -----------------------------------------------------------------------------------------------------------


def test_length(score: Any) -> None:
    words = length.LengthOptions(least=2, most=3, slack=1)
    scores = [score(length, words, "w " * count) for count in range(7)]
    assert scores == [0.0, 0.5, 1.0, 1.0, 0.5, 0.0, 0.0]
    assert score(length, length.LengthOptions(most=3, unit="characters"), "abcd") == 0.0
    tokens = length.LengthOptions(most=3, unit="tokens")
    assert score(length, tokens, "a b c d", completion_ids=(1, 2, 3)) == 1.0
    with pytest.raises(DataError, match="only where a model samples"):
        score(length, tokens, "a")
    with pytest.raises(ValidationError, match="give least, most, or both"):
        length.LengthOptions()


def test_overlong_is_the_papers_formula(score: Any) -> None:
    """Yu et al., 2025, eq. 13, in NumPy, with the paper's lengths."""
    longest, cache = 20480, 4096
    n = np.array([0, 1, 16384, 16385, 18000, 20479, 20480, 20481, 30000])
    expected = np.where(n <= longest - cache, 0.0, np.where(n <= longest, (longest - cache - n) / cache, -1.0))
    options = overlong.OverlongOptions(max_length=longest, cache=cache)
    found = [score(overlong, options, "", completion_ids=[0] * int(count)) for count in n]
    np.testing.assert_allclose(found, expected, atol=0)
    with pytest.raises(ValidationError, match="cache is 9, above max_length 8"):
        overlong.OverlongOptions(max_length=8, cache=9)


# --- JSON schema ------------------------------------------------------------------------------------------------------

SCHEMA = {"type": "object", "properties": {"age": {"type": "integer", "minimum": 0}}, "required": ["age"]}


@pytest.mark.parametrize(
    ("said", "right"),
    [
        ('{"age": 3}', 1.0),
        ('Here it is:\n```json\n{"age": 3}\n```\nDone.', 1.0),
        ('```\n{"age": -3}\n```\n```\n{"age": 3}\n```', 1.0),
        ('{"age": -3}', 0.0),
        ('{"age": 3.5}', 0.0),
        ('{"age": NaN}', 0.0),
        ('{"age": "x", "age": 3}', 0.0),
        ('{"age": 3} and more', 0.0),
        ("[" * 100_000, 0.0),
        ("", 0.0),
    ],
)
def test_json_schema(score: Any, said: str, right: float) -> None:
    assert score(schema, schema.JsonSchemaOptions(schema=SCHEMA), said) == right


@pytest.mark.parametrize(
    ("keeps", "said"),
    [
        ({"multipleOf": 0.01}, "1e999"),
        ({"multipleOf": 0.01}, "1" * 400),
        ({"pattern": "^(a+)+$"}, '"' + "a" * 5000 + '!"'),
        ({"type": "object"}, "```" + " " * 200_000 + "x"),
    ],
    ids=["infinite", "large", "pattern", "spaces"],
)
def test_what_takes_for_ever_or_has_no_number_keeps_no_schema(score: Any, keeps: Any, said: str) -> None:
    assert score(schema, schema.JsonSchemaOptions(schema=keeps), said) == 0.0
    assert score(schema, schema.JsonSchemaOptions(schema={"pattern": "^(a+)+$", "multipleOf": 0.5}), '"aa"') == 1.0


def test_json_schemas_of_rows(score: Any) -> None:
    of_row = schema.JsonSchemaOptions(column="shape")
    assert score(schema, of_row, "3", shape={"type": "integer"}) == 1.0
    assert score(schema, of_row, "3", shape='{"type": "string"}') == 0.0
    assert score(schema, of_row, "3", shape=None) is None
    with pytest.raises(DataError, match="completion 1: reward json_schema: the column holds no JSON schema"):
        score(schema, of_row, "3", shape='{"type": "strange"}')
    assert score(schema, schema.JsonSchemaOptions(schema=SCHEMA, whole=True), '```\n{"age": 3}\n```') == 0.0


def test_nothing_is_fetched(score: Any) -> None:
    elsewhere = schema.JsonSchemaOptions(schema={"$ref": "http://127.0.0.1:9/schema.json"})
    with pytest.raises(DataError, match=r"refers to 'http://127.0.0.1:9/schema.json'.*nothing is fetched"):
        score(schema, elsewhere, "3")


@pytest.mark.parametrize("given", [{}, {"schema": True, "column": "c"}, {"schema": {"type": 3}}], ids=str)
def test_schemas_that_are_none_are_refused(given: Any) -> None:
    with pytest.raises(ValidationError):
        schema.JsonSchemaOptions(**given)
