"""What strangers send: text beyond all bounds, names without end, and clients that leave before they are answered."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import httpx2
import pytest
from finetooth_openai.asking import AT_ONCE, COMPLETIONS, PendingRequest
from finetooth_openai.requests import CompletionRequest
from finetooth_openai.streaming import StreamedText
from finetooth_toolbox.text.tokenizers import FastTokenizer
from finetooth_wire.bounds import LONGEST_TOKEN, MOST

ASK = [{"role": "user", "content": "Who is that?"}]


@pytest.fixture(scope="module")
def served(serve: Callable[..., Any]) -> Any:
    return serve("openai", "mcp")


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Characters of every text that a tokenizer is asked to read."""
    lengths: list[int] = []
    for name in ("encode", "encode_with_offsets"):
        whole = getattr(FastTokenizer, name)

        def counted(self: Any, text: str, *, special: bool = False, whole: Any = whole) -> Any:
            lengths.append(len(text))
            return whole(self, text, special=special)

        monkeypatch.setattr(FastTokenizer, name, counted)
    batches = FastTokenizer.encode_from

    def counted_batch(self: Any, stretches: Any) -> Any:
        lengths.extend(len(text) for text, _ in stretches)
        return batches(self, stretches)

    monkeypatch.setattr(FastTokenizer, "encode_from", counted_batch)
    return lengths


def post(served: Any, path: str, body: Any) -> httpx2.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return httpx2.post(f"{served.url}/v1{path}", content=content, timeout=60)


def refusal(answer: httpx2.Response) -> dict[str, Any]:
    """The error of a refusal, which is short."""
    assert answer.status_code in (400, 404), answer.text[:300]
    assert len(answer.content) < 4000
    error: dict[str, Any] = answer.json()["error"]
    return error


LONG = "ab " * 10**6
PARTS = [{"type": "text", "text": LONG}]


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/completions", {"prompt": LONG}, "prompt"),
        ("/completions", {"prompt": ["a", LONG]}, "prompt[1]"),
        ("/chat/completions", {"messages": [{"role": "user", "content": LONG}]}, "messages"),
        ("/chat/completions", {"messages": [{"role": "user", "content": PARTS}]}, "messages"),
        ("/chat/completions", {"messages": [{"role": "user", "content": LONG[:9000]}] * 100}, "messages"),
        ("/chat/completions", {"messages": [*ASK, {"role": "assistant", "reasoning_content": LONG}, *ASK]}, "messages"),
        (
            "/chat/completions",
            {"messages": ASK, "tools": [{"type": "function", "function": {"name": "a", "description": LONG}}]},
            "messages",
        ),
        (
            "/chat/completions",
            {"messages": ASK, "tools": [{"type": "function", "function": {"name": "a", "parameters": {LONG: 1}}}]},
            "messages",
        ),
        (
            "/chat/completions",
            {"messages": [
                *ASK,
                {"role": "assistant", "tool_calls": [{"function": {"name": "a", "arguments": f'["{LONG}"]'}}]},
            ]},
            "messages",
        ),
    ],
)  # fmt: skip
def test_text_that_no_context_holds_is_refused_before_it_is_read(
    served: Any, read: list[int], path: str, body: Any, param: str
) -> None:
    error = refusal(post(served, path, {"model": "tiny", "max_tokens": 2, **body}))
    assert error["param"] == param and "characters" in error["message"]
    assert max(read, default=0) <= 512 * LONGEST_TOKEN


def test_all_prompts_together_are_bounded(served: Any, read: list[int]) -> None:
    part = "a" * 60_000
    error = refusal(post(served, "/completions", {"model": "tiny", "prompt": [part] * (MOST // 60_000 + 1)}))
    assert "together" in error["message"] and not read
    error = refusal(post(served, "/completions", {"model": "tiny", "prompt": ["a"] * 5000}))
    assert f"{COMPLETIONS:,}" in error["message"] and not read
    error = refusal(post(served, "/completions", {"model": "tiny", "prompt": ["a"] * 200, "n": 100}))
    assert f"{COMPLETIONS:,}" in error["message"] and not read


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"model": "+".join(["tiny"] * 20_000)}, "1000 characters"),
        ({"model": "x" * 10**6}, "1000 characters"),
        ({"model": "+".join("a" * 300)}, "a sum of 300 parts"),
        ({"model": "x" * 900}, "no model '"),
        ({"x" * 10**6: 1}, "is not offered here"),
        ({"stop": ["a" * 1001]}, "1000 characters"),
        ({"messages": ASK * 20_000}, "at most 16384 items"),
        ({"tools": [{"type": "function", "function": {"name": "a"}}] * 2000}, "at most 1024 items"),
    ],
)
def test_names_and_lists_are_bounded_and_not_repeated(served: Any, more: dict[str, Any], said: str) -> None:
    asked = {"model": "tiny", "messages": ASK, "max_tokens": 2, **more}
    assert said in " ".join(map(str, refusal(post(served, "/chat/completions", asked)).values()))


def test_rows_of_an_assistant_are_bounded_before_they_are_read(served: Any, read: list[int]) -> None:
    head = {"Accept": "application/json, text/event-stream", "MCP-Protocol-Version": "2025-06-18"}

    def tool(name: str, arguments: dict[str, Any]) -> dict[str, Any]:
        sent = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": name, "arguments": arguments}}
        result: dict[str, Any] = httpx2.post(f"{served.url}/mcp", json=sent, headers=head, timeout=60).json()["result"]
        return result

    session = tool("new_session", {"base": "tiny"})["structuredContent"]["session"]
    for row in ({"prompt": LONG, "completion": "a"}, {"messages": [{"role": "assistant", "content": LONG}]}):
        for name in ("show_rows", "forward_backward"):
            said = tool(name, {"session": session, "rows": [row]})
            assert said["isError"] and "rows[0]: more than 65,536 characters" in said["content"][0]["text"]
    for prompt in ({"text": LONG}, {"messages": [{"role": "user", "content": LONG}]}):
        said = tool("generate", {"session": session, "prompts": [prompt]})
        assert "prompts[0]: more than" in said["content"][0]["text"]
    assert max(read, default=0) < 1000


class Counting:
    """A service that counts the calls that it is given and those that are left."""

    def __init__(self) -> None:
        self.made = 0
        self.left: set[str] = set()

    def sample(self, *_: Any, **__: Any) -> str:
        self.made += 1
        self.left.add(str(self.made))
        return str(self.made)

    def cancel(self, caller: Any, call: str) -> None:
        self.left.discard(call)


def test_nothing_more_is_begun_for_a_client_that_left() -> None:
    service: Any = Counting()
    body = CompletionRequest(model="tiny", prompt=["a"] * 500)
    asked = PendingRequest(service, None, body, None, [[1]] * 500, "s", body.sampling(1))  # type: ignore[arg-type]

    async def left() -> bool:
        return service.made >= 2 * AT_ONCE

    assert asyncio.run(asked.begun(left)) is None
    assert service.made == 2 * AT_ONCE and not service.left


def test_long_stops_are_looked_for_in_linear_time() -> None:
    """What waits is the longest end of the text that begins a stop: as of the plain definition."""
    told = StreamedText(["aab", "b<"])
    assert [told.more(text) for text in ("xa", "xaa", "xaac", "xaacb")] == ["x", "", "aac", ""]
    assert told.more("xaacb", whole=True) == "b"
