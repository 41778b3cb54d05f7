"""Converts completions to answers of OpenAI's protocol."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from finetooth_hooks.context import Context
from finetooth_hooks.models import Tokenizer
from finetooth_toolbox.text.strict_json import received
from finetooth_wire import wire

from finetooth_openai.messages import calls_json

UNFINISHED = "\ufffd"
"""What decoders write for an incomplete character."""


@dataclass(frozen=True)
class Scored:
    """Likeliest tokens at each place of a completion, best first: ids and log-probabilities."""

    tokens: Sequence[Sequence[int]]
    logprobs: Sequence[Sequence[float]]

    @staticmethod
    def of(completion: Mapping[str, Any]) -> Scored | None:
        """The likeliest tokens of a completion; None if not requested."""
        if "top_tokens" not in completion:
            return None
        ids, scores = (wire.decode_array(completion[name], name).tolist() for name in ("top_tokens", "top_logprobs"))
        return Scored(ids, scores)


def before_stop(text: str, stops: Sequence[str]) -> str:
    """A text up to the first of the strings that end it."""
    return text[: min((at for stop in stops if (at := text.find(stop)) >= 0), default=len(text))]


class ChatAnswer:
    """The parsed tokens of an answer, possibly unfinished.

    Args:
        must_call: it is only a call of a tool, in the schema of `requests.call_schema`.

    Attributes:
        content: up to the first string that ends it.
        reasoning: the thinking before it.
        calls: of tools.
        shown: its tokens without the one that ends it.
    """

    def __init__(
        self, context: Context, tokens: Sequence[int], stops: Sequence[str], id_: str, *, must_call: bool = False
    ) -> None:
        parsed = context.renderer.parse(tokens)
        self.content = before_stop(parsed.message.content, stops)
        self.reasoning = parsed.message.reasoning
        calls: Sequence[Mapping[str, Any]] = parsed.message.tool_calls
        if must_call and (made := _call_in(parsed.message.content)):
            self.content, calls = "", [made]
        self.calls = calls_json(calls, id_)
        self.shown = len(tokens) - (1 if parsed.stop == "stop" else 0)

    def message(self) -> dict[str, Any]:
        """The message."""
        fields: dict[str, Any] = {"role": "assistant", "content": self.content, "refusal": None}
        if self.calls:
            fields |= {"content": self.content or None, "tool_calls": self.calls}
        if self.reasoning:
            fields["reasoning_content"] = self.reasoning
        return fields

    def finish(self, completion: Mapping[str, Any]) -> str:
        """Why it ends."""
        return "tool_calls" if self.calls else str(completion["stop"])


def _call_in(text: str) -> Mapping[str, Any] | None:
    """The call in a text; None if the text was cut before its end."""
    try:
        return {"function": received(text)}
    except ValueError:
        return None


def chat_logprobs(
    tokenizer: Tokenizer, tokens: Sequence[int], logprobs: Sequence[float], top: Scored | None = None
) -> dict[str, Any]:
    """Log-probabilities in chat's format: one per token, from the unscaled model."""
    content = []
    for n, (token, logprob) in enumerate(zip(tokens, logprobs, strict=True)):
        likeliest = [] if top is None else zip(top.tokens[n], top.logprobs[n], strict=True)
        content.append(
            {
                **_token(tokenizer, token, logprob),
                "top_logprobs": [_token(tokenizer, *alternative) for alternative in likeliest],
            }
        )
    return {"content": content, "refusal": None}


def text_logprobs(
    tokenizer: Tokenizer,
    tokens: Sequence[int],
    logprobs: Sequence[float],
    top: Scored | None = None,
    *,
    begin: int = 0,
) -> dict[str, Any]:
    """Log-probabilities in the older format.

    Args:
        begin: characters of the text before the first of these tokens.
    """
    texts = [spelled(tokenizer, token) for token in tokens]
    offsets, at = [], begin
    for text in texts:
        offsets.append(at)
        at += len(text)
    best = None
    if top is not None:
        best = [
            {spelled(tokenizer, token): float(logprob) for token, logprob in zip(ids, scores, strict=True)}
            for ids, scores in zip(top.tokens[: len(tokens)], top.logprobs, strict=False)
        ]
    return {"tokens": texts, "token_logprobs": list(logprobs), "top_logprobs": best, "text_offset": offsets}


def spelled(tokenizer: Tokenizer, token: int) -> str:
    """A token's text, with special tokens spelled out."""
    return tokenizer.decode([int(token)], skip_special=False)


def _token(tokenizer: Tokenizer, token: int, logprob: float) -> dict[str, Any]:
    text = spelled(tokenizer, token)
    return {
        "token": text,
        "logprob": float(logprob),
        "bytes": None if UNFINISHED in text else list(text.encode()),
    }


def shown_of_text(tokenizer: Tokenizer, completion: Mapping[str, Any], stops: Sequence[str]) -> int:
    """A completion's tokens without the stop token; tokens of a stop string count."""
    tokens = completion["tokens"]
    if completion["stop"] != "stop" or any(stop in tokenizer.decode(list(tokens)) for stop in stops):
        return len(tokens)
    return len(tokens) - 1


def usage(prompts: Sequence[Sequence[int]], results: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Counts of prompt and completion tokens, with the stop tokens."""
    read = sum(map(len, prompts))
    written = sum(len(completion["tokens"]) for result in results for completion in result["completions"])
    return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}


def envelope(kind: str, id_: str, model: str) -> dict[str, Any]:
    """The common fields of every answer and chunk.

    Args:
        kind: OpenAI's `object`.
    """
    prefix = "chatcmpl" if kind.startswith("chat") else "cmpl"
    return {"id": f"{prefix}-{id_}", "object": kind, "created": int(time.time()), "model": model}
