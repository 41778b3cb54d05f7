"""`/v1/responses`: converts a request to a chat request, and the chat's answer to this route's format."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from finetooth_openai.answers import ChatAnswer, Scored, chat_logprobs, usage
from finetooth_openai.asking import PendingRequest
from finetooth_openai.faults import Fault
from finetooth_openai.requests import MOST_MESSAGES, MOST_TOOLS, ChatRequest, RequestBase, not_offered, read

Json = dict[str, Any]

LOGPROBS, SEALED = "message.output_text.logprobs", "reasoning.encrypted_content"
"""Values of `include`; reasoning is never encrypted here, it is plain in its item."""

NOTHING_KEPT = "nothing is kept between requests here, so send the whole conversation as input"


FIELDS = {
    "max_tokens": "max_output_tokens", "response_format": "text.format", "verbosity": "text.verbosity",
    "reasoning_effort": "reasoning.effort", "messages": "input",
}  # fmt: skip
"""Names of a chat request's fields in this route."""


class TextFormat(BaseModel):
    """`text.format`."""

    model_config = ConfigDict(extra="forbid")
    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    description: str | None = None
    schema_: Json | None = Field(default=None, alias="schema")
    strict: bool | None = None


class TextOptions(BaseModel):
    """`text`."""

    model_config = ConfigDict(extra="forbid")
    format: TextFormat | None = None
    verbosity: Literal["low", "medium", "high"] | None = None


class Reasoning(BaseModel):
    """`reasoning`."""

    model_config = ConfigDict(extra="forbid")
    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = None
    summary: str | None = None


class StreamSettings(BaseModel):
    """Options of a stream."""

    model_config = ConfigDict(extra="forbid")
    include_obfuscation: bool | None = None


class ResponseRequest(RequestBase):
    """`POST /responses`."""

    input: str | Annotated[list[Json], Field(min_length=1, max_length=MOST_MESSAGES)]
    instructions: str | None = None
    max_output_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    tools: Annotated[list[Json], Field(max_length=MOST_TOOLS)] | None = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    text: TextOptions | None = None
    reasoning: Reasoning | None = None
    include: list[str] | None = None
    stream: bool | None = None
    stream_options: StreamSettings | None = None
    store: bool | None = None
    background: bool | None = None
    previous_response_id: str | None = None
    conversation: Any = None
    truncation: Literal["auto", "disabled"] | None = None
    metadata: Json | None = None
    service_tier: str | None = None
    prompt_cache_key: str | None = None
    safety_identifier: str | None = None

    def chat(self) -> ChatRequest:
        """The equivalent chat request; to be used inside `in_own_names`.

        Raises:
            Fault: the server does not support it.
        """
        messages, _ = messages_of(self.input, self.instructions)
        fields = {
            "model": self.model,
            "messages": messages,
            "max_tokens": self.max_output_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "logprobs": LOGPROBS in (self.include or ()) or bool(self.top_logprobs),
            "top_logprobs": self.top_logprobs,
            "tools": None if self.tools is None else [_tool(tool, n) for n, tool in enumerate(self.tools)],
            "tool_choice": _choice(self.tool_choice),
            "parallel_tool_calls": self.parallel_tool_calls,
            "response_format": self._format(),
            "reasoning_effort": None if self.reasoning is None else self.reasoning.effort,
            "verbosity": None if self.text is None else self.text.verbosity,
            "stream": self.stream,
            "service_tier": self.service_tier,
        }
        return read(ChatRequest, fields)

    @contextmanager
    def in_own_names(self) -> Iterator[None]:
        """Errors of the chat request name this request's fields."""
        try:
            yield
        except Fault as fault:
            param = fault.param or ""
            own = FIELDS.get(param, param)
            if param.startswith("messages"):
                for n, origin in enumerate(messages_of(self.input, self.instructions)[1]):
                    for begin in (f"messages[{n}]", f"messages.{n}"):
                        if param == begin or param.startswith(f"{begin}."):
                            own = origin + param.removeprefix(begin)
            message = fault.args[0].replace(param, own) if param else fault.args[0]
            raise Fault(
                message, action=fault.action, status=fault.status, param=own or None, code=fault.code
            ) from fault

    def check(self) -> None:
        for name in ("store", "background", "previous_response_id", "conversation"):
            if getattr(self, name):
                raise not_offered(name, NOTHING_KEPT)
        if self.truncation == "auto":
            raise not_offered("truncation", "nothing of a conversation is left out without a word")
        for name in self.include or ():
            if name not in (LOGPROBS, SEALED):
                raise not_offered(f"include: {name}")
        if self.reasoning is not None and self.reasoning.summary is not None:
            raise not_offered("reasoning.summary", "what was thought aloud comes whole")

    def _format(self) -> Json | None:
        wanted = None if self.text is None else self.text.format
        if wanted is None or wanted.type != "json_schema":
            return None if wanted is None else {"type": wanted.type}
        schema = {"name": wanted.name or "answer", "strict": wanted.strict}
        return {"type": "json_schema", "json_schema": {**schema, "schema": wanted.schema_ or {"type": "object"}}}


def messages_of(given: str | Sequence[Json], instructions: str | None) -> tuple[list[Json], list[str]]:
    """Items of a request as messages of a chat, and the field of the request that each came from.

    Reasoning, text and calls are separate items that belong to one message.

    Raises:
        Fault: an item of another kind.
    """
    messages: list[Json] = [] if instructions is None else [{"role": "system", "content": instructions}]
    origins = ["instructions"] * len(messages)
    items = [{"role": "user", "content": given}] if isinstance(given, str) else given
    open_answer: Json | None = None  # the assistant's message that the next item may continue
    for n, item in enumerate(items):
        where = "input" if isinstance(given, str) else f"input[{n}]"
        kind = item.get("type") or "message"
        if kind == "message" and item.get("role") != "assistant":
            open_answer = None
            message = {"role": item.get("role"), "content": _parts(item.get("content"), where)}
        elif kind == "function_call_output":
            open_answer = None
            output = _parts(item.get("output"), where)
            message = {"role": "tool", "tool_call_id": item.get("call_id"), "content": output}
        elif kind in ("message", "reasoning", "function_call"):
            if open_answer is not None and not (kind == "message" and "content" in open_answer):
                _add_to(open_answer, kind, item, where)
                continue
            message = open_answer = {"role": "assistant"}
            _add_to(message, kind, item, where)
        else:
            raise Fault(f"{where}: an item of the type {kind!r} is not offered here", param=where,
                        action="send texts, function calls and their outputs")  # fmt: skip
        messages.append(message)
        origins.append(where)
    return messages, origins


def _add_to(message: Json, kind: str, item: Json, where: str) -> None:
    """Add an item of an answer to the answer's message."""
    if kind == "message":
        message["content"] = _parts(item.get("content"), where)
    elif kind == "reasoning":
        parts = item.get("content") or item.get("summary") or []
        thought = "".join(str(part.get("text", "")) for part in parts if isinstance(part, Mapping))
        message["reasoning_content"] = message.get("reasoning_content", "") + thought
    else:
        function = {"name": item.get("name"), "arguments": item.get("arguments")}
        message.setdefault("tool_calls", []).append({"id": item.get("call_id"), "function": function})


def _parts(content: Any, where: str) -> Any:
    """Content in the format of chat messages.

    Raises:
        Fault: a part of another kind.
    """
    if not isinstance(content, list):
        return content
    parts: list[Json] = []
    for k, part in enumerate(content):
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind in ("input_text", "output_text", "text"):
            parts.append({"type": "text", "text": part.get("text")})
        elif kind == "input_image" and part.get("image_url"):
            parts.append({"type": "image_url", "image_url": {"url": part["image_url"]}})
        elif kind == "input_audio":
            parts.append({"type": kind, kind: part.get(kind)})
        else:
            raise Fault(f"content of the type {kind!r} is not offered here", action="send text",
                        param=f"{where}.content[{k}]")  # fmt: skip
    return parts


def _tool(tool: Json, n: int) -> Json:
    if tool.get("type") != "function":
        raise Fault(f"a tool of the type {tool.get('type')!r} is not offered here", action="offer functions",
                    param=f"tools[{n}]")  # fmt: skip
    function = {name: tool[name] for name in ("name", "description", "parameters") if tool.get(name) is not None}
    return {"type": "function", "function": function}


def _choice(choice: Any) -> Any:
    if isinstance(choice, Mapping) and choice.get("type") == "function":
        return {"type": "function", "function": {"name": choice.get("name")}}
    return choice


def output_of(pending: PendingRequest[ChatRequest], completion: Mapping[str, Any]) -> list[Json]:
    """Items of an answer: reasoning, text, and calls of tools."""
    body, context, id_ = pending.body, pending.model.context, pending.calls[0]
    answer = ChatAnswer(context, completion["tokens"], body.stops, f"{id_}_0", must_call=bool(body.must_call))
    items: list[Json] = []
    if answer.reasoning:
        items.append(reasoning_item(id_, answer.reasoning))
    if answer.content or not answer.calls:
        logprobs: list[Json] = []
        if body.logprobs:
            shown = slice(answer.shown)
            scores = completion["logprobs"][shown]
            tokens = completion["tokens"][shown]
            logprobs = chat_logprobs(context.tokenizer, tokens, scores, Scored.of(completion))["content"]
        items.append(message_item(id_, answer.content, logprobs))
    return [*items, *(call_item(call) for call in answer.calls)]


def reasoning_item(id_: str, text: str) -> Json:
    """The item of reasoning."""
    content = [{"type": "reasoning_text", "text": text}]
    return {"type": "reasoning", "id": f"rs_{id_}", "summary": [], "content": content}


def message_item(id_: str, text: str | None, logprobs: Sequence[Json] = ()) -> Json:
    """The item of text; None: nothing yet."""
    head = {"type": "message", "id": f"msg_{id_}", "role": "assistant"}
    if text is None:
        return {**head, "status": "in_progress", "content": []}
    return {**head, "status": "completed", "content": [text_part(text, logprobs)]}


def text_part(text: str, logprobs: Sequence[Json] = ()) -> Json:
    """The content of a message."""
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": list(logprobs)}


def call_item(call: Mapping[str, Any]) -> Json:
    """A call of a tool."""
    return {"type": "function_call", "id": f"fc_{call['id']}", "call_id": call["id"], "status": "completed",
            **call["function"]}  # fmt: skip


def response(request: ResponseRequest, pending: PendingRequest[ChatRequest], result: Mapping[str, Any] | None) -> Json:
    """The answer to a request; without a result, its state at the start."""
    completion = None if result is None else result["completions"][0]
    cut = completion is not None and completion["stop"] == "length"
    used = None
    if result is not None:
        counts = usage(pending.prompts, [result])
        used = {
            "input_tokens": counts["prompt_tokens"],
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens": counts["completion_tokens"],
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": counts["total_tokens"],
        }
    return {
        "id": f"resp_{pending.calls[0]}",
        "object": "response",
        "created_at": int(time.time()),
        "status": "in_progress" if completion is None else "incomplete" if cut else "completed",
        "error": None,
        "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
        "instructions": request.instructions,
        "max_output_tokens": request.max_output_tokens,
        "metadata": request.metadata or {},
        "model": request.model,
        "output": [] if completion is None else output_of(pending, completion),
        "parallel_tool_calls": request.parallel_tool_calls is not False,
        "previous_response_id": None,
        "reasoning": {"effort": None if request.reasoning is None else request.reasoning.effort, "summary": None},
        "service_tier": "default",
        "store": False,
        "temperature": pending.sampling.temperature,
        "text": {"format": _said_format(request)},
        "tool_choice": request.tool_choice or "auto",
        "tools": [{"strict": None, **tool} for tool in request.tools or ()],
        "top_logprobs": request.top_logprobs or 0,
        "top_p": pending.sampling.top_p,
        "truncation": "disabled",
        "usage": used,
        "user": request.user,
    }


def _said_format(request: ResponseRequest) -> Json:
    wanted = None if request.text is None else request.text.format
    return {"type": "text"} if wanted is None else wanted.model_dump(mode="json", by_alias=True, exclude_none=True)
