"""Texts that no tokenizer, template or parser should be given: half characters, nesting, and a great many letters."""

from __future__ import annotations

import json
import threading
import time
from typing import Any

from attacking.ground import Ground, attack

CHAT, COMPLETIONS = "/openai/v1/chat/completions", "/openai/v1/completions"


def _chat(g: Ground, **more: Any) -> Any:
    body = {"model": g.base, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2, **more}
    return g.post(CHAT, json.dumps(body).encode())


def _said(g: Ground, answer: Any, word: str = "") -> str:
    """What an answer in OpenAI's shape refuses."""
    assert 400 <= answer.status_code < 500, (answer.status_code, answer.text[:300])
    assert len(answer.content) < 2**14, f"an answer of {len(answer.content)} bytes"
    said = str(answer.json()["error"]["message"])
    assert word in said, f"{word!r} is not in {said[:300]!r}"
    return said[:160]


def _completion(g: Ground, **more: Any) -> Any:
    return g.post(COMPLETIONS, json.dumps({"model": g.base, "prompt": "a", "max_tokens": 2, **more}).encode())


@attack("half an emoji in a message, as JavaScript cuts one", short=True)
def half_an_emoji(g: Ground) -> str:
    return _said(g, _chat(g, messages=[{"role": "user", "content": "hi \ud83d"}]), "half a character")


@attack("half an emoji in a prompt, a stop, a name, a tool and the arguments of its call")
def half_an_emoji_anywhere(g: Ground) -> str:
    half = "\ude00"
    tool = {"type": "function", "function": {"name": "f", "description": half}}
    call = {"id": "1", "function": {"name": "f", "arguments": json.dumps({"a": half})}}
    for answer in (
        _completion(g, prompt=half),
        _completion(g, stop=[half]),
        _chat(g, model=half),
        _chat(g, tools=[tool]),
        _chat(g, messages=[{"role": "assistant", "tool_calls": [call]}]),
    ):
        _said(g, answer)
    return "5 refused"


@attack("half an emoji in ids, metadata and names of REST and of the Tinker wire")
def half_an_emoji_elsewhere(g: Ground) -> str:
    half = "\ud83d"
    for path, body in (
        ("/v1/sessions", {"base": g.base, "metadata": {"a": half}}),
        ("/v1/samplers", {"base": half}),
        ("/api/v1/create_session", {"tags": [half]}),
        ("/api/v1/asample", {"base_model": half}),
    ):
        answer = g.post(path, json.dumps(body).encode())
        assert 400 <= answer.status_code < 500, (path, answer.status_code, answer.text[:300])
    return "4 refused"


@attack("a hundred thousand brackets as the arguments of a tool's call", short=True)
def deep_arguments(g: Ground) -> str:
    said = ""
    for text in ("[" * 10**5, '{"a":' * 10**5):
        call = {"id": "1", "function": {"name": "f", "arguments": text}}
        said = _said(g, _chat(g, messages=[{"role": "assistant", "tool_calls": [call]}]), "JSON object")
    return said


@attack("a schema for the answer that is nested a thousand times, and one of 60 kB of alternatives")
def deep_schemas(g: Ground) -> str:
    deep: dict[str, Any] = {"type": "string"}
    for _ in range(400):
        deep = {"type": "object", "properties": {"a": deep}, "required": ["a"]}
    wide = {"anyOf": [{"type": "object", "properties": {f"k{n}": {"type": "string"}}} for n in range(900)]}
    said = []
    for schema in (deep, wide):
        answer = _chat(g, response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": schema}})
        assert answer.status_code < 500, answer.text[:300]
        said.append(str(answer.status_code))
    return " and ".join(said)


@attack("forty megabytes of spaces as a prompt", short=True)
def forty_megabytes_of_spaces(g: Ground) -> str:
    return _said(g, _completion(g, prompt=" " * 40_000_000 + "a"))


@attack("forty megabytes of letters as a message, in one part and in a thousand")
def forty_megabytes_of_a_message(g: Ground) -> str:
    part = [{"type": "text", "text": "a" * 40_000} for _ in range(1000)]
    _said(g, _chat(g, messages=[{"role": "user", "content": part}]))
    return _said(g, _chat(g, messages=[{"role": "user", "content": "a" * 40_000_000}]))


@attack("twenty megabytes in a tool's description, its name, its schema and a call's arguments")
def megabytes_of_tools(g: Ground) -> str:
    long = "a" * 5_000_000
    for function in (
        {"name": "f", "description": long},
        {"name": long},
        {"name": "f", "parameters": {"type": "object", "description": long}},
    ):
        _said(g, _chat(g, tools=[{"type": "function", "function": function}]))
    call = {"id": "1", "function": {"name": "f", "arguments": json.dumps({"a": long})}}
    return _said(g, _chat(g, messages=[{"role": "assistant", "tool_calls": [call]}]))


@attack("prompts of six megabytes in four requests at once")
def many_long_prompts(g: Ground) -> str:
    body = json.dumps({"model": g.base, "prompt": " " * 6_000_000, "max_tokens": 2}).encode()
    found = g.side_by_side(4, lambda n: g.post(COMPLETIONS, body), workers=4)
    assert all(400 <= one.status_code < 500 for one in found)
    return f"{len(found)} refused"


@attack("a stop of five megabytes, and a thousand of them")
def long_stops(g: Ground) -> str:
    _said(g, _completion(g, stop=["a" * 900] * 1000))
    return _said(g, _completion(g, stop="a" * 5_000_000))


@attack("a model named by the sum of twenty thousand adapters", short=True)
def a_sum_of_many_names(g: Ground) -> str:
    begun = time.monotonic()
    said = _said(g, _completion(g, model="+".join(["a"] * 20_000)))
    assert time.monotonic() - begun < 10.0, "it took as long as the square of its length"
    return said


@attack("names of ten megabytes: a model's, a field's, a role's")
def long_names(g: Ground) -> str:
    long = "a" * 10**7
    for answer in (
        _completion(g, model=long),
        _completion(g, **{long: 1}),
        _chat(g, messages=[{"role": long, "content": "a"}]),
        g.get(f"/openai/v1/models/{'a' * 20_000}"),
    ):
        assert 400 <= answer.status_code < 500 and len(answer.content) < 2**14, len(answer.content)
    return "4 refused"


@attack("five thousand prompts in a request, and a hundred completions of each of a hundred", short=True)
def many_prompts(g: Ground) -> str:
    _said(g, _completion(g, prompt=["a"] * 100, n=100))
    return _said(g, _completion(g, prompt=["a"] * 5_000), "completions are taken")


@attack("a hundred thousand biases, messages and tools")
def many_of_everything(g: Ground) -> str:
    _said(g, _completion(g, logit_bias={str(n): 1 for n in range(10**5)}))
    _said(g, _chat(g, messages=[{"role": "user", "content": "a"}] * 10**5))
    return _said(g, _chat(g, tools=[{"type": "function", "function": {"name": "f"}}] * 10**5))


@attack("a stream whose key is revoked while it is written", short=True)
def a_revoked_stream(g: Ground) -> str:
    from finetooth_server.keeping.records import Records
    from finetooth_server.keys import Keys

    records = Records(f"sqlite:///{g.server.folder / 'service.db'}")
    key = Keys(records).create("careless", ("sample",))
    body = json.dumps({"model": g.base, "prompt": "a", "max_tokens": 3000, "stream": True, "logit_bias": {"1": -100}})
    headers = {"X-API-Key": key, "Content-Type": "application/json"}
    lines, revoked = 0, threading.Event()
    begun = 0.0
    try:
        with g.http.stream("POST", COMPLETIONS, content=body.encode(), headers=headers) as answer:
            assert answer.status_code == 200
            for line in answer.iter_lines():
                lines += bool(line)
                if lines == 3 and not revoked.is_set():
                    Keys(records).revoke(key.split("_")[1])
                    begun = time.monotonic()
                    revoked.set()
                assert "[DONE]" not in line, "the stream was written to its end"
                assert not revoked.is_set() or time.monotonic() - begun < 20.0, "the stream goes on"
    except Exception as error:  # cut off, as it ought to be
        if isinstance(error, AssertionError):
            raise
    finally:
        records.close()
    assert revoked.is_set(), "nothing was streamed"
    assert g.post(COMPLETIONS, body.encode(), key=key).status_code == 401
    return f"cut off after {time.monotonic() - begun:.1f} s"
