"""The renderer against mistral-common, the tokenizer package of the models' makers, over a vocabulary of bytes."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from finetooth_hooks import Conversation, DataError, Message
from finetooth_kit import FakeContext
from finetooth_kit.templates import (
    CLOCK,
    WEATHER,
    assert_reads_back,
    assert_trains,
    extends,
    template_tokenizer,
)
from finetooth_mistral.renderer import MistralOptions, build
from finetooth_toolbox.text.tokenizers import FastTokenizer

pytest.importorskip("mistral_common", reason="mistral-common is not installed")

V13 = [
    "[INST]",
    "[/INST]",
    "[AVAILABLE_TOOLS]",
    "[/AVAILABLE_TOOLS]",
    "[TOOL_CALLS]",
    "[TOOL_RESULTS]",
    "[/TOOL_RESULTS]",
]
V13 += ["[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[ARGS]", "[THINK]", "[/THINK]", "<s>", "</s>"]
VERSIONS = {"v3-tekken": "v3", "v7-tekken": "v7", "small-3.2": "v11"}


def common(folder: Path, version: str) -> Any:
    """mistral-common's tokenizer of a version."""
    from mistral_common.protocol.instruct.validator import ValidationMode
    from mistral_common.tokens.tokenizers.base import SpecialTokens
    from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

    names = [name.value for name in SpecialTokens]
    special = [{"rank": i, "token_str": name, "is_control": True} for i, name in enumerate(names)]
    vocabulary = [
        {"rank": i, "token_bytes": base64.b64encode(bytes([i])).decode(), "token_str": None} for i in range(256)
    ]
    config = {
        "pattern": r"[\s\S]",
        "num_vocab_tokens": 256,
        "default_vocab_size": 256 + len(special),
        "default_num_special_tokens": len(special),
        "version": version,
    }
    written = {"config": config, "vocab": vocabulary, "special_tokens": special}
    (folder / "tekken.json").write_text(json.dumps(written), encoding="utf-8")
    return MistralTokenizer.from_file(str(folder / "tekken.json"), mode=ValidationMode.finetuning)


def request(conversation: Conversation) -> Any:
    """A conversation in mistral-common's shape."""
    from mistral_common.protocol.instruct.request import ChatCompletionRequest

    messages: list[dict[str, Any]] = []
    for message in conversation.messages:
        shape: dict[str, Any] = {"role": message.role, "content": message.content}
        if message.reasoning:
            thought = {"type": "thinking", "thinking": message.reasoning, "closed": True}
            shape["content"] = [thought, {"type": "text", "text": message.content}]
        if message.tool_calls:
            dumped = [{**call, "function": dict(call["function"])} for call in message.tool_calls]
            for call in dumped:
                call["function"]["arguments"] = json.dumps(call["function"]["arguments"], ensure_ascii=False)
            shape = {"role": "assistant", "tool_calls": dumped}
            if message.reasoning:
                shape["content"] = [thought, {"type": "text", "text": message.content}]
        if message.role == "tool":
            shape |= {"tool_call_id": message.tool_call_id, "name": message.name}
        messages.append(shape)
    return ChatCompletionRequest.model_validate(
        {"messages": messages, "tools": [dict(tool) for tool in conversation.tools] or None}
    )


def call(name: str, id_: str, **arguments: Any) -> dict[str, Any]:
    return {"id": id_, "type": "function", "function": {"name": name, "arguments": arguments}}


SYSTEM = Message("system", "Be brief.")
TURNS = (Message("user", "Hi"), Message("assistant", "Yes."), Message("user", "Où?"), Message("assistant", "Là. 😀"))
CALLED = (
    Message("user", "Hi"),
    Message("assistant", "Yes."),
    Message("user", "Weather?"),
    Message(
        "assistant", "", tool_calls=(call("get_weather", "abcdefghi", place="Å"), call("clock", "123456789", days=2))
    ),
    Message("tool", '{"degrees": -3}', name="get_weather", tool_call_id="abcdefghi"),
    Message("tool", "12", name="clock", tool_call_id="123456789"),
    Message("assistant", "It is cold."),
)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    "conversation",
    [
        Conversation(TURNS[:2]),
        Conversation((SYSTEM, *TURNS)),
        Conversation((SYSTEM, *CALLED), (WEATHER, CLOCK)),
        Conversation((SYSTEM, *CALLED, *TURNS[2:]), (CLOCK,)),
    ],
    ids=["one turn", "system", "calls", "calls and another turn"],
)
def test_agrees_with_mistral_common(
    mistral_tokenizer: Callable[..., FastTokenizer], tmp_path: Path, version: str, conversation: Conversation
) -> None:
    if conversation.tools and version == "v7-tekken":
        pytest.skip("the official template of v7-tekken has no markup for tools")
    tokenizer = mistral_tokenizer(version)
    options = MistralOptions.model_validate({"version": version, "default_system": None})
    renderer = build(options, FakeContext(tmp_path, tokenizer=tokenizer))
    expected = common(tmp_path, VERSIONS[version]).encode_chat_completion(request(conversation)).text
    assert tokenizer.decode(renderer.render(conversation).tokens) == expected


THOUGHT = (
    Message("user", "What is 6 times 7?"),
    Message("assistant", "42", reasoning="6 times 7 is 42."),
    Message("user", "And the time?"),
    Message(
        "assistant",
        "I look.",
        reasoning="I need the clock.",
        tool_calls=(
            {"id": "123456789", "type": "function", "function": {"name": "clock", "arguments": {"zone": "é"}}},
        ),
    ),
    Message("tool", "12:00", name="clock", tool_call_id="123456789"),
    Message("assistant", "Noon."),
)
ANSWERS = (
    "[THINK]6 times 7 is 42.[/THINK]42</s>",
    '[THINK]I need the clock.[/THINK]I look.[TOOL_CALLS]clock[ARGS]{"zone": "é"}</s>',
    "Noon.</s>",
)


@pytest.fixture
def thinking(tmp_path: Path) -> tuple[Any, FastTokenizer]:
    """The renderer of v13 and a tokenizer of bytes without a chat template."""
    tokenizer = template_tokenizer("", V13, eos="</s>", bos="<s>")
    tokenizer.wrapped.chat_template = None
    return build(MistralOptions(version="v13"), FakeContext(tmp_path, tokenizer=tokenizer)), tokenizer


@pytest.mark.parametrize(
    "conversation",
    [
        Conversation(THOUGHT[:2]),
        Conversation((SYSTEM, *THOUGHT[:2], *TURNS[:2])),
        Conversation((SYSTEM, *THOUGHT), (WEATHER, CLOCK)),
        Conversation((*TURNS, *THOUGHT[2:]), (CLOCK,)),
    ],
    ids=["one turn", "thoughts before", "calls", "tools before the first turn"],
)
def test_thinking_agrees_with_mistral_common(
    thinking: tuple[Any, FastTokenizer], tmp_path: Path, conversation: Conversation
) -> None:
    renderer, tokenizer = thinking
    theirs = common(tmp_path, "v13")
    expected = theirs.encode_chat_completion(request(conversation)).text
    rendered = renderer.render(conversation)
    assert tokenizer.decode(rendered.tokens) == expected
    by_content = dict(zip(("42", "I look.", "Noon."), ANSWERS, strict=True))
    said = [message.content for message in conversation.messages if message.role == "assistant"]
    wanted = [by_content.get(content, f"{content}</s>") for content in said]
    assert_trains(renderer, tokenizer, conversation, wanted)
    assert extends(renderer, conversation)


@pytest.mark.parametrize("index", [1, 3, 5])
def test_what_was_thought_is_read_back(thinking: tuple[Any, FastTokenizer], index: int) -> None:
    def without_ids(message: Message) -> Message:
        calls = tuple({"type": "function", "function": call["function"]} for call in message.tool_calls)
        return replace(message, tool_calls=calls)

    assert_reads_back(thinking[0], Conversation(THOUGHT, (CLOCK,)), without_ids, index)


def test_thoughts_of_the_user_and_text_that_spells_markup(thinking: tuple[Any, FastTokenizer]) -> None:
    renderer, tokenizer = thinking
    with pytest.raises(DataError, match="no place for reasoning of the role"):
        renderer.render(Conversation((Message("user", "Hi", reasoning="hm"), Message("assistant", "Yes."))))
    spelled = Conversation((Message("user", "Say [THINK]"), Message("assistant", "[THINK]", reasoning="[/THINK]")))
    marks = [tokenizer.token_id(name) for name in ("[THINK]", "[/THINK]")]
    assert [token for token in renderer.render(spelled).tokens if token in marks] == marks
