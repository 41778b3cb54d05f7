"""An agent of OpenAI's Agents SDK, as its users write one, over a served model: it calls its tool, reads what the tool
says, and answers."""

from __future__ import annotations

from collections.abc import Callable
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


def test_an_agent_calls_its_tool_and_answers(
    serve: Callable[..., Any], served_recipe: dict[str, Any], learned_by_heart: Callable[..., None]
) -> None:
    from agents.models.chatcmpl_converter import Converter

    places: list[str] = []

    @agents.function_tool  # type: ignore[untyped-decorator]
    def weather(place: str) -> str:
        """The weather of a place."""
        places.append(place)
        return "sunny"

    tool = dict(Converter.tool_to_openai(weather))
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

    agents.set_tracing_disabled(True)
    client = openai.AsyncOpenAI(base_url=f"{served.url}/openai/v1", api_key="none", max_retries=0)
    model = agents.OpenAIChatCompletionsModel(model="weatherman", openai_client=client)
    settings = agents.ModelSettings(temperature=0)
    agent = agents.Agent(name="reporter", model=model, tools=[weather], model_settings=settings)
    result = agents.Runner.run_sync(agent, ASKED, max_turns=4)
    assert places == ["Rome"] and result.final_output == SAID
