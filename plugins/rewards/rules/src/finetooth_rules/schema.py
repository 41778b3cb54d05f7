"""The reward `json_schema`: JSON that keeps a schema, by the package jsonschema."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import lru_cache, partial
from typing import Any

import regex
from finetooth_hooks import DataError, Options
from finetooth_toolbox.text.strict_json import received
from jsonschema import SchemaError, ValidationError, validators
from jsonschema.protocols import Validator
from pydantic import Field, field_validator, model_validator
from referencing import Registry
from referencing.exceptions import Unresolvable

from finetooth_rules.per_completion import ScoreEach, ScoreWithColumn

FENCED = re.compile(r"^```[ \t]*(?:json[ \t]*)?\n(.*?)^```", re.M | re.S | re.I)

PATTERN_SECONDS = 1.0
"""In which a text of an answer matches a pattern of the schema, or does not."""


class JsonSchemaOptions(Options):
    """Options of the reward `json_schema`."""

    json_schema: dict[str, Any] | bool | None = Field(default=None, alias="schema")
    """The schema; references to other documents are not fetched."""
    column: str | None = None
    """Or the column with a schema for each row, as a mapping or as JSON."""
    whole: bool = False
    """Whether the whole answer must be JSON; otherwise the last fenced block counts, if there is one."""

    @field_validator("json_schema")
    @classmethod
    def _valid(cls, schema: Any) -> Any:
        if schema is not None:
            try:
                validators.validator_for(schema).check_schema(schema)
            except SchemaError as error:
                raise ValueError(f"not a JSON schema: {error.message}") from error
        return schema

    @model_validator(mode="after")
    def _one(self) -> JsonSchemaOptions:
        if (self.json_schema is None) == (self.column is None):
            raise ValueError("give either schema or column")
        return self


def parsed(completion: str, *, whole: bool) -> Any:
    """The JSON of an answer.

    Raises:
        ValueError: it is none, has a key twice, or NaN, which JSON has not.
    """
    blocks = [] if whole else FENCED.findall(completion)
    return received(blocks[-1] if blocks else completion, parse_constant=_refuse, object_pairs_hook=_once)


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    mapping = dict(pairs)
    if len(mapping) < len(pairs):
        raise ValueError("a key comes twice")
    return mapping


def validator(schema: Any) -> Validator:
    """What checks; it fetches nothing, and a pattern that takes for ever on some answers is stopped."""
    checks = validators.extend(validators.validator_for(schema), {"pattern": _pattern})
    checker: Validator = checks(schema, registry=Registry())
    return checker


def _pattern(checks: Validator, pattern: str, instance: Any, schema: Any) -> Iterator[ValidationError]:
    try:
        if checks.is_type(instance, "string") and not regex.search(pattern, instance, timeout=PATTERN_SECONDS):
            yield ValidationError(f"does not match {pattern}")
    except TimeoutError:
        yield ValidationError(f"{pattern} takes too long on it")


def score(completion: str, *, checks: Validator, whole: bool) -> float:
    """Returns 1 if the completion's JSON satisfies the schema, else 0.

    Raises:
        DataError: the schema refers to what it does not hold.
    """
    try:
        value = parsed(completion, whole=whole)
    except (ValueError, RecursionError):
        return 0.0
    try:
        return float(checks.is_valid(value))
    except (RecursionError, ArithmeticError):  # as deep, or as large a number, as nothing can compare
        return 0.0
    except Unresolvable as error:
        action = "put it into the schema's $defs; nothing is fetched"
        raise DataError("reward json_schema", f"the schema refers to {error.ref!r}", action=action) from error


@lru_cache(maxsize=512)
def _of_text(schema: str) -> Validator:
    try:
        parsed = received(schema)
        validators.validator_for(parsed).check_schema(parsed)
    except (ValueError, SchemaError) as error:
        problem = f"the column holds no JSON schema: {' '.join(str(error).split())[:100]}"
        raise DataError("reward json_schema", problem, action="fix the row") from error
    return validator(parsed)


def score_with(completion: str, schema: Any, *, whole: bool) -> float | None:
    """None for a row without a schema."""
    if schema is None:
        return None
    text = schema if isinstance(schema, str) else json.dumps(schema, sort_keys=True)
    return score(completion, checks=_of_text(text), whole=whole)


def build(options: JsonSchemaOptions) -> ScoreEach | ScoreWithColumn:
    if options.column is not None:
        return ScoreWithColumn("json_schema", options.column, partial(score_with, whole=options.whole))
    return ScoreEach(partial(score, checks=validator(options.json_schema), whole=options.whole))
