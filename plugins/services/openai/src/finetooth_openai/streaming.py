"""Streams answers: server-sent events whose data are chunks, with `[DONE]` at the end."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from typing import Any

from finetooth_hooks import FinetoothError
from finetooth_hooks.faces import FacePiece

from finetooth_openai.answers import (
    UNFINISHED,
    ChatAnswer,
    Scored,
    before_stop,
    chat_logprobs,
    envelope,
    shown_of_text,
    text_logprobs,
    usage,
)
from finetooth_openai.asking import PendingRequest, result_of
from finetooth_openai.faults import Fault, error_body
from finetooth_openai.requests import ChatRequest, Request
from finetooth_openai.thoughts import THOUGHT, thinks

_BEGUN_TAG = re.compile(r"<[^\s>]*$")


def begun(stop: str, text: str) -> int:
    """How many characters at the end of a text begin a stop string, without completing it."""
    at = text.find(stop[0], max(0, len(text) - len(stop) + 1))
    while at >= 0 and not stop.startswith(text[at:]):
        at = text.find(stop[0], at + 1)
    return len(text) - at if at >= 0 else 0


class StreamedText:
    """The sent part of a text. Uncertain ends wait: bytes of an incomplete character, a possible beginning of a stop
    string, an incomplete tag."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops, self._told = stops, ""

    def more(self, text: str, *, whole: bool = False) -> str:
        """The text to send now.

        Args:
            text: all of it so far.
            whole: nothing follows.
        """
        if not whole:
            text = text.rstrip(UNFINISHED)
            text = _BEGUN_TAG.sub("", text[: len(text) - max((begun(stop, text) for stop in self._stops), default=0)])
        if not text.startswith(self._told):
            if whole:
                raise Fault("a part that was sent turned out not to belong to the answer", action="ask without stream",
                            status=500)  # fmt: skip
            return ""
        piece = text[len(self._told) :]
        self._told = text
        return piece


class _Choice:
    """One answer of a stream.

    Args:
        index: among all answers.
        answer: its parser.
    """

    def __init__(self, pending: PendingRequest[Request], index: int, answer: str) -> None:
        self._asked, self._index, self._answer = pending, index, answer
        self._tokens: list[int] = []
        self._logprobs: list[float] = []
        self._content, self._reasoning = StreamedText(pending.body.stops), StreamedText(())
        self._scored = self._offset = 0
        self._begun, self._thinks = False, isinstance(pending.body, ChatRequest) and thinks(pending.model.context)

    def take(self, piece: FacePiece) -> list[dict[str, Any]]:
        """Add tokens; return the chunks' choices."""
        self._tokens += piece.tokens
        self._logprobs += piece.logprobs
        if isinstance(self._asked.body, ChatRequest):
            return self._chat()
        text = before_stop(self._asked.model.context.tokenizer.decode(self._tokens), self._asked.body.stops)
        return self._text(self._content.more(text), len(self._tokens) - 1)

    def end(self, completion: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Complete the answer; return the last choices."""
        self._tokens, self._logprobs = list(completion["tokens"]), list(completion["logprobs"])
        if isinstance(self._asked.body, ChatRequest):
            return self._chat(completion)
        tokenizer, stops = self._asked.model.context.tokenizer, self._asked.body.stops
        text, shown = self._content.more(completion["text"], whole=True), shown_of_text(tokenizer, completion, stops)
        choices = self._text(text, shown, Scored.of(completion))
        return [*choices, {"index": self._index, "text": "", "logprobs": None, "finish_reason": completion["stop"]}]

    def _chat(self, completion: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
        body, whole = self._asked.body, completion is not None
        assert isinstance(body, ChatRequest)
        context, must_call = self._asked.model.context, bool(body.must_call)
        answer = ChatAnswer(context, self._tokens, body.stops, self._answer, must_call=must_call)
        delta: dict[str, Any] = {}
        if not self._begun:
            delta["role"] = "assistant"
        thinking = not answer.reasoning and (self._thinks or answer.content.lstrip().startswith(THOUGHT[0]))
        if whole or not (body.tools or thinking):  # with tools, the text may become a call
            if reasoning := self._reasoning.more(answer.reasoning, whole=whole):
                delta["reasoning_content"] = reasoning
            if content := self._content.more(answer.content, whole=whole):
                delta["content"] = content
        if whole and answer.calls:
            delta["tool_calls"] = [{"index": n, **call} for n, call in enumerate(answer.calls)]
        choices = []
        shown = answer.shown if whole else min(answer.shown, len(self._tokens) - 1)
        logprobs = self._new_chat_logprobs(shown, None if completion is None else Scored.of(completion))
        if delta or logprobs:
            self._begun = True
            choices.append({"index": self._index, "delta": delta, "logprobs": logprobs, "finish_reason": None})
        if completion is not None:
            choices.append(
                {"index": self._index, "delta": {}, "logprobs": None, "finish_reason": answer.finish(completion)}
            )
        return choices

    def _new_chat_logprobs(self, shown: int, top: Scored | None) -> dict[str, Any] | None:
        """Log-probabilities of tokens without them so far; with the likeliest tokens, which are known at the end, of
        all tokens."""
        body = self._asked.body
        assert isinstance(body, ChatRequest)
        if not body.logprobs or shown <= self._scored or (body.top and top is None):
            return None
        chosen = slice(self._scored, shown)
        self._scored = shown
        return chat_logprobs(self._asked.model.context.tokenizer, self._tokens[chosen], self._logprobs[chosen], top)

    def _text(self, text: str, shown: int, top: Scored | None = None) -> list[dict[str, Any]]:
        logprobs, wanted = None, getattr(self._asked.body, "logprobs", None) is not None
        if wanted and shown > self._scored and (top is not None or not self._asked.body.top):
            chosen = slice(self._scored, shown)
            tokenizer = self._asked.model.context.tokenizer
            tokens, scores = self._tokens[chosen], self._logprobs[chosen]
            logprobs = text_logprobs(tokenizer, tokens, scores, top, begin=self._offset)
            self._offset += sum(map(len, logprobs["tokens"]))
            self._scored = shown
        if not text and logprobs is None:
            return []
        return [{"index": self._index, "text": text, "logprobs": logprobs, "finish_reason": None}]


async def events(pending: PendingRequest[Request]) -> AsyncIterator[str]:
    """The events of a request for a chat or completions; see `told`."""
    return await event_stream(pending, _events(pending))


async def event_stream(pending: PendingRequest[Any], all_of_them: AsyncGenerator[str, None]) -> AsyncIterator[str]:
    """The events of a request. The first one is ready when this returns, so early errors are raised.

    Raises:
        Fault: its call failed.
        UserError: too many streams are open.
    """
    try:
        first = await anext(all_of_them)
    except FinetoothError:
        await pending.cancel()
        raise

    async def following() -> AsyncIterator[str]:
        ended = False
        try:
            yield first
            async for line in all_of_them:
                yield line
            ended = True
        except Fault as fault:
            yield event(error_body(fault.status, str(fault), fault.param, fault.code))
        except FinetoothError as error:
            yield event(error_body(400, str(error)))
        finally:
            await all_of_them.aclose()  # frees its place at once
            if not ended:  # the client went away
                await pending.cancel()

    return following()


async def _events(pending: PendingRequest[Request]) -> AsyncGenerator[str, None]:
    results: list[Mapping[str, Any]] = []
    kind = "chat.completion.chunk" if isinstance(pending.body, ChatRequest) else "text_completion"
    head = envelope(kind, pending.calls[0], pending.body.model)
    nothing = {"usage": None} if pending.body.usage_at_end else {}
    async with aclosing(choices_of(pending, results)) as choices:
        async for choice in choices:
            yield ": still waiting\n\n" if choice is None else event({**head, "choices": [choice], **nothing})
    if pending.body.usage_at_end:
        yield event({**head, "choices": [], "usage": usage(pending.prompts, results)})
    yield "data: [DONE]\n\n"


async def choices_of(
    pending: PendingRequest[Any], results: list[Mapping[str, Any]]
) -> AsyncGenerator[dict[str, Any] | None, None]:
    """Choices of a request's chunks, as they come; None if nothing came for a while.

    Args:
        results: of finished calls, added here.

    Raises:
        Fault: a call failed.
        UserError: too many streams are open.
    """
    for place, call in enumerate(pending.calls):
        choices = [
            _Choice(pending, place * pending.sampling.n + n, f"{pending.calls[0]}_{n}")
            for n in range(pending.sampling.n)
        ]
        async with aclosing(pending.service.follow(pending.caller, call)) as following:
            async for piece in following:
                if piece is None:
                    yield None
                elif isinstance(piece, FacePiece):
                    for choice in choices[piece.completion].take(piece):
                        yield choice
                else:
                    results.append(result_of(piece))
                    for writing, completion in zip(choices, results[-1]["completions"], strict=True):
                        for choice in writing.end(completion):
                            yield choice


def event(content: Any) -> str:
    """One event, in JSON."""
    return f"data: {json.dumps(content, separators=(',', ':'))}\n\n"
