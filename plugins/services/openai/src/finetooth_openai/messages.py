"""Converts messages of OpenAI's protocol to the project's, and back."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from finetooth_hooks import Message
from finetooth_hooks.data.examples import Placed
from finetooth_toolbox.text.strict_json import received

from finetooth_openai.faults import Fault
from finetooth_openai.media import image_of, sound_of
from finetooth_openai.requests import Call, ChatMessage


def messages_of(sent: Sequence[ChatMessage]) -> tuple[Message, ...]:
    """Converts the messages of a request.

    Raises:
        Fault: a message holds unsupported content; names the field.
    """
    names: dict[str, str] = {}  # of tools, by the call
    messages = []
    for n, message in enumerate(sent):
        where = f"messages[{n}]"
        for field in ("audio", "function_call", "refusal"):
            if getattr(message, field):
                raise Fault(f"{field} is not offered here", action="leave it out", param=f"{where}.{field}")
        calls = [_call(call, f"{where}.tool_calls[{k}]") for k, call in enumerate(message.tool_calls or ())]
        names |= {call["id"]: call["function"]["name"] for call in calls}
        if calls and message.role != "assistant":
            raise Fault("only the assistant calls tools", action="fix the role", param=f"{where}.tool_calls")
        content, media = _parts(message, where)
        if not content and not calls and message.role == "assistant" and not message.reasoning_content:
            raise Fault("the message says nothing", action="give its content", param=f"{where}.content")
        answers = message.tool_call_id or ""
        tool = message.role == "tool"
        if tool and answers not in names and not message.name:
            raise Fault(f"no call before it has the id {answers!r}", action="give the id of a call",
                        param=f"{where}.tool_call_id")  # fmt: skip
        messages.append(
            Message(
                "system" if message.role == "developer" else message.role,
                content,
                reasoning=message.reasoning_content or "",
                tool_calls=tuple(calls),
                name=message.name or names.get(answers, "") if tool else "",
                tool_call_id=answers if tool else "",
                media=media,
            )
        )
    return tuple(messages)


def calls_json(calls: Sequence[Mapping[str, Any]], answer: str) -> list[dict[str, Any]]:
    """A model's tool calls, with ids for the client's answers.

    Args:
        answer: id of the answer that they are in.
    """
    return [
        {
            "id": str(call.get("id") or f"call_{answer}_{n}"),
            "type": "function",
            "function": {
                "name": call["function"]["name"],
                "arguments": json.dumps(call["function"]["arguments"], ensure_ascii=False),
            },
        }
        for n, call in enumerate(calls)
    ]


def _parts(message: ChatMessage, where: str) -> tuple[str, tuple[Placed, ...]]:
    """Text of a message, and the images and sounds in it."""
    if message.content is None or isinstance(message.content, str):
        return message.content or "", ()
    text: str = ""
    media: list[Placed] = []
    for k, part in enumerate(message.content):
        at = f"{where}.content[{k}]"
        if part.type == "text" and part.text is not None:
            text += part.text
        elif part.type in ("image_url", "input_audio"):
            shown = part.type == "image_url"
            if message.role != "user":
                what = "an image" if shown else "a sound"
                raise Fault(f"a message of the role {message.role} holds {what}", action="send it as the user",
                            param=at)  # fmt: skip
            medium = image_of(part.image_url, at) if shown else sound_of(part.input_audio, at)
            media.append(Placed(len(text), medium))
        else:
            raise Fault(f"content of the type {part.type!r} is not offered here", action="send text", param=at)
    return text, tuple(media)


def _call(call: Call, where: str) -> dict[str, Any]:
    """A call in the form for renderers, with its arguments as an object."""
    name, arguments = call.function.get("name"), call.function.get("arguments")
    try:
        read = received(arguments) if isinstance(arguments, str) else arguments
    except ValueError:
        read = None
    if not isinstance(name, str) or not isinstance(read, dict):
        raise Fault("a call has no name, or its arguments are not the text of a JSON object", action="fix it",
                    param=f"{where}.function")  # fmt: skip
    return {"id": call.id, "type": "function", "function": {"name": name, "arguments": read}}
