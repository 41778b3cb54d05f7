"""Answers held to a JSON schema: judged by jsonschema, pydantic and OpenAI's own client, over a model that knows
nothing of JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Literal

import jsonschema
import pytest
from pydantic import BaseModel

openai = pytest.importorskip("openai")

ASK: dict[str, Any] = {
    "model": "tiny", "messages": [{"role": "user", "content": "Who?"}], "max_tokens": 120, "temperature": 1, "seed": 5,
}  # fmt: skip

PERSON = {
    "type": "object",
    "properties": {
        "kind": {"enum": ["cat", "dog"]},
        "tame": {"type": "boolean"},
        "tags": {"type": "array", "items": {"enum": ["old", "shy", "big"]}, "minItems": 1, "maxItems": 2},
        "age": {"type": "integer", "minimum": 0, "maximum": 99},
    },
    "required": ["kind", "tame", "tags", "age"],
    "additionalProperties": False,
}


class Pet(BaseModel):
    """What OpenAI's client makes a schema of, and reads the answer as."""

    kind: Literal["cat", "dog"]
    tame: bool


@pytest.fixture(scope="module")
def client(serve: Callable[..., Any]) -> Any:
    with openai.OpenAI(base_url=f"{serve('openai').url}/v1", api_key="none", max_retries=0) as made:
        yield made


def wanted(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}


@pytest.mark.parametrize("more", [{}, {"temperature": 0}, {"top_k": 3, "n": 2}, {"top_p": 0.3}], ids=str)
def test_every_answer_fits_its_schema(client: Any, more: dict[str, Any]) -> None:
    extra = {"extra_body": {"top_k": more["top_k"]}} if "top_k" in more else {}
    plain = {name: value for name, value in more.items() if name != "top_k"}
    said = client.chat.completions.create(**{**ASK, **plain, **extra}, response_format=wanted(PERSON))
    for choice in said.choices:
        jsonschema.validate(json.loads(choice.message.content), PERSON)
        assert choice.finish_reason == "stop"
    assert len(said.choices) == more.get("n", 1)
    streamed = client.chat.completions.create(**{**ASK, **plain, **extra}, response_format=wanted(PERSON), stream=True)
    parts = [part.choices[0] for part in streamed]
    told = "".join(part.delta.content or "" for part in parts if part.index == 0)
    assert told == said.choices[0].message.content


def test_the_clients_own_models_are_read(client: Any) -> None:
    (choice,) = client.chat.completions.parse(**ASK, response_format=Pet).choices
    assert isinstance(choice.message.parsed, Pet)


def test_an_object_without_a_schema_begins_as_one(client: Any) -> None:
    (choice,) = client.chat.completions.create(**ASK, response_format={"type": "json_object"}).choices
    assert choice.message.content.startswith("{")
    if choice.finish_reason == "stop":
        assert isinstance(json.loads(choice.message.content), dict)


def test_who_asks_for_no_schema_gets_what_he_got_before(client: Any) -> None:
    assert (
        client.chat.completions.create(**ASK).choices[0].message.content
        == client.chat.completions.create(**ASK, response_format={"type": "text"}).choices[0].message.content
    )


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ({"type": "objekt"}, "objekt"),
        ({"type": "array", "items": {"enum": ["a"]}, "uniqueItems": True}, "uniqueItems"),
        ({"description": "x" * 70_000}, "65,536"),
    ],
    ids=["type", "keyword", "long"],
)
def test_what_cannot_be_held_is_refused_in_one_line(client: Any, schema: dict[str, Any], said: str) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(**ASK, response_format=wanted(schema))
    assert said in refused.value.body["message"] and "\n" not in refused.value.body["message"]
