"""Items of OpenAI's Responses interface, which NeMo Gym speaks: those of a turn, and messages in a request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from finetooth_hooks.data.examples import Message
from finetooth_toolbox.text.strict_json import received

from finetooth_gyms.messages import text_of

Item = Mapping[str, Any]


def said_item(text: str, turn: int) -> dict[str, Any]:
    """What the policy said in a turn."""
    part = {"type": "output_text", "text": text, "annotations": []}
    return {"type": "message", "role": "assistant", "id": f"msg_{turn}", "status": "completed", "content": [part]}


def call_item(call: Mapping[str, Any]) -> dict[str, Any]:
    """A call of `calls_with_ids`."""
    return {"type": "function_call", "call_id": call["id"], "id": call["id"], "status": "completed",
            "name": call["name"], "arguments": call["arguments"]}  # fmt: skip


def response_of(output: Sequence[Item], tools: Sequence[Item], *, turn: int = 1, cut: bool = False) -> dict[str, Any]:
    """A response with these items.

    Args:
        tools: that were offered.
        cut: the turn has as many tokens as it may have, and no end.
    """
    return {
        "id": f"resp_{turn}", "created_at": 0, "model": "policy", "object": "response", "output": list(output),
        "parallel_tool_calls": True, "tool_choice": "auto", "tools": list(tools),
        "status": "incomplete" if cut else "completed",
        "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
    }  # fmt: skip


def tool_of(declared: Item) -> dict[str, Any]:
    """A tool of the Responses interface in the shape of chats."""
    function = {
        name: declared[name]
        for name in ("name", "description", "parameters", "strict")
        if declared.get(name) is not None
    }
    return {"type": "function", "function": function}


def items_in(body: Item) -> list[Item]:
    """The conversation of a request, its instructions in front."""
    given = body["input"]
    items = [{"role": "user", "content": given}] if isinstance(given, str) else list(given)
    return [{"role": "system", "content": body["instructions"]}, *items] if body.get("instructions") else items


def gist_of(item: Item) -> tuple[str, ...]:
    """What an item says: its type, and the texts by which it is known again after a client has rewritten the rest.

    Raises:
        ValueError: the policy cannot read such an item.
    """
    kind = str(item.get("type") or "message")
    if kind == "message":
        return kind, str(item["role"]), text_of(item.get("content"))
    if kind == "function_call":
        return kind, str(item["call_id"]), str(item["name"]), str(item["arguments"])
    if kind == "function_call_output":
        return kind, str(item["call_id"]), text_of(item["output"])
    raise ValueError(f"it shows the policy an item of type {kind!r}, which no message holds")


def messages_in(gists: Sequence[tuple[str, ...]], before: Sequence[tuple[str, ...]] = ()) -> tuple[Message, ...]:
    """Items as messages; what an assistant says and calls in a row is a single one.

    Args:
        gists: of `gist_of`.
        before: items of the conversation before them, whose calls they may answer.
    """
    names = {gist[1]: gist[2] for gist in (*before, *gists) if gist[0] == "function_call"}
    messages: list[Message] = []
    for kind, *said in gists:
        if kind == "function_call_output":
            messages.append(Message("tool", said[1], name=names.get(said[0], ""), tool_call_id=said[0]))
        elif kind == "message" and said[0] != "assistant":
            messages.append(Message("system" if said[0] == "developer" else said[0], said[1]))
        else:
            if not messages or messages[-1].role != "assistant":
                messages.append(Message("assistant", ""))
            last = messages[-1]
            if kind == "message":
                messages[-1] = replace(last, content=last.content + said[1])
            else:
                function = {"name": said[1], "arguments": received(said[2])}
                call = {"id": said[0], "type": "function", "function": function}
                messages[-1] = replace(last, tool_calls=(*last.tool_calls, call))
    return tuple(messages)


def reward_of(verdict: Any, path: str) -> float:
    """The reward in an answer of a server.

    Raises:
        ValueError: it gave none.
    """
    reward = verdict.get("reward") if isinstance(verdict, Mapping) else None
    if isinstance(reward, bool) or not isinstance(reward, int | float):
        raise ValueError(f"{path} gave no reward: {str(verdict)[:200]}")
    return float(reward)
