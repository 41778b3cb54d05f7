"""Streams answers of `/v1/responses`: events that open an item, add to it and close it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import aclosing
from typing import Any

from finetooth_hooks import FinetoothError

from finetooth_openai.asking import PendingRequest
from finetooth_openai.requests import ChatRequest
from finetooth_openai.responses import (
    Json,
    ResponseRequest,
    message_item,
    reasoning_item,
    response,
    text_part,
)
from finetooth_openai.streaming import choices_of, event


class Written:
    """The events of one answer.

    Args:
        id_: of its call.
    """

    def __init__(self, id_: str) -> None:
        self._id = id_
        self._number = 0
        self._open: str | None = None  # kind of the current item
        self._texts = {"reasoning": "", "message": ""}
        self._logprobs: list[Json] = []
        self._items = 0

    def event(self, kind: str, **more: Any) -> str:
        """The next event."""
        self._number += 1
        content = {"type": kind, "sequence_number": self._number - 1, **more}
        return f"event: {kind}\n{event(content)}"

    def take(self, choice: Mapping[str, Any]) -> Iterator[str]:
        """Events of a choice of a chat's stream."""
        delta = choice.get("delta") or {}
        scores = (choice.get("logprobs") or {}).get("content") or []
        if thought := delta.get("reasoning_content"):
            yield from self._add("reasoning", thought, [])
        if delta.get("content") or scores:
            yield from self._add("message", delta.get("content") or "", scores)

    def end(self, output: list[Json]) -> Iterator[str]:
        """Close open items, and send the rest.

        Args:
            output: items of the whole answer.
        """
        for item in output:
            if item["type"] == "message" and self._open != "message":
                yield from self._add("message", "", [])
        yield from self._close()
        for item in output:
            if item["type"] == "function_call":
                where = {"item_id": item["id"], "output_index": self._items}
                begun = {**item, "arguments": "", "status": "in_progress"}
                yield self.event("response.output_item.added", output_index=self._items, item=begun)
                yield self.event("response.function_call_arguments.delta", delta=item["arguments"], **where)
                whole = {"name": item["name"], "arguments": item["arguments"]}
                yield self.event("response.function_call_arguments.done", **whole, **where)
                yield self.event("response.output_item.done", output_index=self._items, item=item)
                self._items += 1

    def _add(self, kind: str, text: str, scores: list[Json]) -> Iterator[str]:
        if self._open != kind:
            yield from self._close()
            self._open = kind
            item = (
                message_item(self._id, None) if kind == "message" else {**reasoning_item(self._id, ""), "content": []}
            )
            yield self.event("response.output_item.added", output_index=self._items, item=item)
            if kind == "message":
                yield self.event("response.content_part.added", part=text_part(""), **self._where())
        self._texts[kind] += text
        self._logprobs += scores
        if kind == "message" and (text or scores):
            yield self.event("response.output_text.delta", delta=text, logprobs=scores, **self._where())
        elif text:
            yield self.event("response.reasoning_text.delta", delta=text, **self._where())

    def _close(self) -> Iterator[str]:
        if self._open is None:
            return
        text, where = self._texts[self._open], self._where()
        if self._open == "message":
            yield self.event("response.output_text.done", text=text, logprobs=self._logprobs, **where)
            yield self.event("response.content_part.done", part=text_part(text, self._logprobs), **where)
            item = message_item(self._id, text, self._logprobs)
        else:
            yield self.event("response.reasoning_text.done", text=text, **where)
            item = reasoning_item(self._id, text)
        yield self.event("response.output_item.done", output_index=self._items, item=item)
        self._open, self._items = None, self._items + 1

    def _where(self) -> Json:
        id_ = f"msg_{self._id}" if self._open == "message" else f"rs_{self._id}"
        return {"item_id": id_, "output_index": self._items, "content_index": 0}


async def response_events(request: ResponseRequest, pending: PendingRequest[ChatRequest]) -> AsyncGenerator[str, None]:
    """The events of a request, to be sent by `streaming.told`."""
    written, begun = Written(pending.calls[0]), response(request, pending, None)
    results: list[Mapping[str, Any]] = []
    async with aclosing(choices_of(pending, results)) as choices:
        first = await anext(choices)  # an error before the first event is the answer to the request
        yield written.event("response.created", response=begun)
        yield written.event("response.in_progress", response=begun)
        try:
            for line in written.take(first or {}):
                yield line
            async for choice in choices:
                if choice is None:
                    yield ": still waiting\n\n"
                for line in written.take(choice or {}):
                    yield line
        except FinetoothError as error:
            await pending.cancel()
            code, param = getattr(error, "code", None), getattr(error, "param", None)
            yield written.event("error", code=code or "server_error", message=str(error), param=param)
            return
    whole = response(request, pending, results[0])
    for line in written.end(whole["output"]):
        yield line
    ended = "response.incomplete" if whole["incomplete_details"] else "response.completed"
    yield written.event(ended, response=whole)
