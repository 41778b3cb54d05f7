"""The renderer against mistral-common, the tokenizer package of the models' makers, over a vocabulary of bytes."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from finetooth_hooks import Conversation, Message
from finetooth_hooks.testing import FakeContext
from finetooth_hooks.testing.templates import CLOCK, WEATHER
from finetooth_mistral.renderer import MistralOptions, build
from finetooth_toolbox.text.tokenizers import FastTokenizer

pytest.importorskip("mistral_common", reason="mistral-common is not installed")

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
        if message.tool_calls:
            dumped = [{**call, "function": dict(call["function"])} for call in message.tool_calls]
            for call in dumped:
                call["function"]["arguments"] = json.dumps(call["function"]["arguments"], ensure_ascii=False)
            shape = {"role": "assistant", "tool_calls": dumped}
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
