"""The guide's agent of OpenAI's Agents SDK over a served model: it calls its tool, reads what the tool says, and
answers."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from finetooth_core.cli.start_options import StartOptions
from finetooth_core.cli.state import State
from finetooth_hooks import Conversation, Message

openai = pytest.importorskip("openai")
agents = pytest.importorskip("agents", reason="openai-agents is not installed")
pytestmark = pytest.mark.slow

ASKED = "Weather in Rome?"
SAID = "It is sunny."


def guide() -> str:
    """The script of the guide's section."""
    text = (Path(__file__).parents[2] / "docs/guides/serve-openai.md").read_text(encoding="utf-8")
    found = re.search(r"^## Agents\n.*?^```text\n(.*?)^```$", text, re.S | re.M)
    assert found is not None
    return found[1]


def test_an_agent_calls_its_tool_and_answers(
    serve: Callable[..., Any], served_recipe: dict[str, Any], learned_by_heart: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    from agents.models.chatcmpl_converter import Converter

    tells, asks = guide().split("\nclient = ")
    told: dict[str, Any] = {}
    exec(tells, told)  # what is in the guide, up to where it asks a server
    tool = dict(Converter.tool_to_openai(told["weather"]))
    served = serve("api", "openai")
    served.service.settings.models["caller"] = {**served_recipe, "data": {"renderer": "hermes"}}
    renderer = State(StartOptions()).context(served.service.settings.models["caller"]).renderer
    call = {"type": "function", "function": {"name": "weather", "arguments": {"place": "Rome"}}}
    turns = (
        Message("user", ASKED),
        Message("assistant", "", tool_calls=(call,)),
        Message("tool", "sunny", name="weather"),
    )
    learned = renderer.render(Conversation((*turns, Message("assistant", SAID)), (tool,)))
    learned_by_heart(served, learned, model="caller", name="weatherman", steps=80)

    asks = asks.replace("http://server:8420/v1", f"{served.url}/openai/v1").replace("runs/mine", "weatherman")
    exec(f"client = {asks}", told)
    assert capsys.readouterr().out.splitlines()[-1] == SAID
    (_, called, *_) = agents.Runner.run_sync(told["agent"], ASKED).to_input_list()
    assert (called["name"], called["arguments"]) == ("weather", '{"place": "Rome"}')
