"""What a row costs: nothing is rendered twice, nothing is looked for where nothing is said; results are the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from finetooth_hooks import Conversation, DataError, Message
from finetooth_jinja.renderer import JinjaRenderer
from finetooth_jinja.shapes import Shaper
from finetooth_jinja.spans import Whole
from finetooth_kit import draws
from finetooth_kit.templates import CLOCK, conversations
from finetooth_toolbox.text.tokenizers import FastTokenizer
from hypothesis import given, settings

END = "<|im_end|>"
CHAT = Conversation(tuple(Message(role, f"{role}.") for _ in range(3) for role in ("user", "assistant")))


@pytest.fixture
def made(
    shared: Path, byte_level: Callable[..., FastTokenizer], renderer_of: Callable[..., JinjaRenderer]
) -> Callable[[str], JinjaRenderer]:
    def make(name: str) -> JinjaRenderer:
        template = (shared / f"templates/{name}.jinja").read_text(encoding="utf-8")
        return renderer_of(byte_level(template, ["<|im_start|>", END], eos=END))

    return make


@pytest.fixture
def qwen3(made: Callable[[str], JinjaRenderer]) -> JinjaRenderer:
    return made("qwen3")


def test_nothing_is_rendered_twice(made: Callable[[str], JinjaRenderer], monkeypatch: pytest.MonkeyPatch) -> None:
    renderer = made("chatml")
    rendered: list[Any] = []
    render = Shaper.render

    def counted(self: Shaper, messages: Any, tools: Any = (), *, prompt: bool = False) -> Any:
        rendered.append((tuple(messages), bool(tools), prompt))
        return render(self, messages, tools, prompt=prompt)

    monkeypatch.setattr(Shaper, "render", counted)
    assert len(renderer.render(CHAT).spans) == len(CHAT.messages)
    assert len(rendered) == len(set(rendered))
    answers = len(CHAT.messages) // 2
    assert len(rendered) == len(CHAT.messages) + answers  # each beginning, and the prompt for each answer
    rendered.clear()
    renderer.render(CHAT, train_on="last")
    assert sum(prompt for *_, prompt in rendered) == 1


def test_nothing_is_looked_for_where_nothing_is_said(qwen3: JinjaRenderer, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[str] = []
    look = qwen3._encoder.spells_special
    monkeypatch.setattr(qwen3._encoder, "spells_special", lambda text: looked.append(text) or look(text))
    qwen3.render(CHAT)
    assert looked == [message.content for message in CHAT.messages]
    looked.clear()
    call = {"type": "function", "function": {"name": "clock", "arguments": {}}}
    said = Message("assistant", "", reasoning="hm", tool_calls=(call,))
    qwen3.render(Conversation((CHAT.messages[0], said), (CLOCK,)))
    assert len(looked) == 5 and "hm" in looked  # contents, tools, calls, reasoning


@pytest.mark.slow
def test_results_are_those_of_rendering_everything(qwen3: JinjaRenderer) -> None:
    def anew(self: Whole, i: int, shaper: Shaper) -> str:
        return shaper.render(self.conversation.messages[:i], self.conversation.tools).text

    def result(conversation: Conversation) -> Any:
        try:
            return qwen3.render(conversation)
        except DataError as refused:
            return str(refused)

    @settings(max_examples=draws(20), deadline=None)
    @given(conversations(tools=True, reasoning=True))
    def check(conversation: Conversation) -> None:
        found = result(conversation)
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(Whole, "beginning", anew)
            assert result(conversation) == found

    check()
