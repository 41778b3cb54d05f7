"""Messages in OpenAI's shape, to ours and back."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from finetooth_hooks.data.examples import Message
from finetooth_toolbox.text.strict_json import received


def message_of(raw: Any) -> Message:
    """From a mapping, or an object with `model_dump` (pydantic).

    Raises:
        ValueError: it is not a message of text.
    """
    values: Mapping[str, Any] = raw if isinstance(raw, Mapping) else raw.model_dump(exclude_none=True)
    calls = tuple(_call(call) for call in values.get("tool_calls") or ())
    return Message(
        "system" if values["role"] == "developer" else str(values["role"]),
        text_of(values.get("content")),
        reasoning=str(values.get("reasoning_content") or ""),
        tool_calls=calls,
        name=str(values.get("name") or ""),
        tool_call_id=str(values.get("tool_call_id") or ""),
    )


def text_of(content: Any) -> str:
    """Text that stands as it is, or in parts.

    Raises:
        ValueError: a part is not text.
    """
    if content is None or isinstance(content, str):
        return content or ""
    if isinstance(content, Sequence) and all(isinstance(part, Mapping) and "text" in part for part in content):
        return "".join(str(part["text"]) for part in content)
    raise ValueError(f"content {content!r:.60} is not text")


def _call(call: Mapping[str, Any]) -> dict[str, Any]:
    function = call.get("function") or call  # verifiers writes name and arguments next to the id
    arguments = function["arguments"]
    arguments = received(arguments) if isinstance(arguments, str) else dict(arguments)
    return {"id": str(call.get("id") or ""), "type": "function",
            "function": {"name": str(function["name"]), "arguments": arguments}}  # fmt: skip


def calls_with_ids(message: Message, turn: int) -> list[dict[str, Any]]:
    """Calls of a turn, each with an id by which it is answered."""
    return [
        {
            "id": str(call.get("id") or f"call_{turn}_{n}"),
            "name": str(call["function"]["name"]),
            "arguments": json.dumps(call["function"]["arguments"], ensure_ascii=False),
        }
        for n, call in enumerate(message.tool_calls)
    ]
