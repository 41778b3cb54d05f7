"""What an assistant reads of the tools, and what becomes of a call, without a server."""

from __future__ import annotations

import asyncio
import re
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("mcp")

from finetooth_mcp.face import call_tool_result, described
from finetooth_mcp.rows import Readers
from finetooth_mcp.tools import INSTRUCTIONS, TOOLS, Desk

PRIMITIVES = {"forward", "backward", "forward_backward", "step", "zero_grad", "generate", "logprobs", "save", "load"}
SESSION = {"session": "s"}


class FakeService:
    """Takes every call; each ends as `end` says."""

    served: dict[str, Any] = {"tiny": {"model": "x", "adapter": "lora", "data": {}}}  # noqa: RUF012

    def __init__(self, **end: Any) -> None:
        self.end, self.sent, self.recorded = end, [], []

    def submit(self, caller: Any, session: str, operation: str, arguments: Any) -> str:
        self.sent.append((session, operation, arguments))
        return "c1"

    async def wait(self, caller: Any, call: str, seconds: float) -> Any:
        return {"id": call, "session": "s", "operation": "step", "state": "done", "result": {}, **self.end}

    def close(self, caller: Any, session: str) -> None:
        raise RuntimeError("a secret of the server")

    def record(self, what: str, caller: Any, *, model: str = "", outcome: str = "") -> None:
        self.recorded.append((what, model, outcome))


def call(service: Any, name: str, **arguments: Any) -> Any:
    desk = Desk(service, Readers(service), SimpleNamespace(tenant="me"))
    return asyncio.run(call_tool_result(desk, name, arguments))


def test_there_is_a_tool_for_each_primitive_and_each_says_what_it_takes() -> None:
    assert set(TOOLS) >= PRIMITIVES
    for tool in TOOLS.values():
        shown = described(tool)
        assert shown.description and shown.input_schema["type"] == "object"
        assert shown.input_schema["additionalProperties"] is False
        for name, about in shown.input_schema["properties"].items():
            assert about.get("description") or "$ref" in about, f"{tool.name}.{name} says nothing"


def test_every_tool_that_a_description_names_is_there() -> None:
    for text in [INSTRUCTIONS, *(tool.about for tool in TOOLS.values())]:
        named = re.findall(r"Next: ([a-z_]+)|(?:^|\b)call ([a-z_]+_[a-z_]+)|\d\. ([a-z_]+)", text)
        for name in {one for found in named for one in found if one} - {"any", "more", "all"}:
            assert name in TOOLS, f"{name!r} in {text!r}"


def test_a_call_that_goes_on_says_how_to_wait_for_it() -> None:
    service = FakeService(state="queued")
    result = call(service, "step", **SESSION, learning_rate=0.5)
    assert result.structured_content == {"state": "queued", "call": "c1", "next": "call wait_for_call with this id"}
    assert service.sent == [("s", "step", {"settings": {"learning_rate": 0.5}})]
    assert service.recorded == [("mcp step", "s", "queued")]


def test_errors_are_one_line_and_tell_nothing_of_the_server() -> None:
    service = FakeService(state="failed", error={"message": "no gradients\n  were accumulated", "category": "user"})
    for name, arguments, said in (
        ("step", SESSION, "no gradients were accumulated"),
        ("step", {**SESSION, "learning_rate": -1}, "learning_rate: Input should be greater than 0"),
        ("step", {**SESSION, "rate": 1}, "rate: unknown argument (known: learning_rate, max_grad_norm, session)"),
        ("step", {"sesion": "s"}, "sesion: unknown argument (did you mean session?)"),
        ("forward", {**SESSION, "rows": [{"promt": "x"}]}, "(did you mean rows.0.prompt?)"),
        ("step", {}, "session: Field required"),
        ("close_session", SESSION, "the server failed"),
        ("fit", {}, "no tool has the name 'fit'"),
    ):
        result = call(service, name, **arguments)
        assert result.is_error and said in result.content[0].text, name
        assert "\n" not in result.content[0].text and "secret" not in result.content[0].text
    assert {outcome for _, _, outcome in service.recorded} == {"failed"}


def test_models_are_listed_with_what_a_session_has_by_default() -> None:
    found = call(FakeService(), "list_models").structured_content
    assert found == {"models": [{"name": "tiny", "defaults": {"adapter": "lora"}}]}
