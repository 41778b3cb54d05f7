"""Tokenises rows and prompts of an assistant for a model."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import numpy as np
from finetooth_hooks import Conversation, DataError, Datum, Message, PromptCompletion, Rendered
from finetooth_hooks.context import Context
from finetooth_hooks.faces import FaceService
from finetooth_saving.run_folder import opening_of
from finetooth_toolbox.messages.openings import NONE, Opening
from finetooth_toolbox.messages.prompts import render_completion, text_opening
from finetooth_wire.bounds import too_long

from finetooth_mcp.arguments import Prompt, Row


@dataclass(frozen=True)
class Reader:
    """Reads rows for one base model.

    Attributes:
        context: with its tokenizer and renderer.
        longest: tokens of the longest row; None: no limit.
        opening: messages in front of prompts without a system message.
    """

    context: Context
    longest: int | None
    opening: Opening = NONE

    def all_rendered(self, rows: Sequence[Row]) -> list[Rendered]:
        """Tokens and weights of a call's rows.

        Raises:
            DataError: one of them cannot be read, or their text is more than is read at once.
        """
        texts = [(row.prompt or "", row.completion or "", *_contents(row.messages)) for row in rows]
        _check_length(texts, self.longest, "rows")
        return [self.rendered(row, f"rows[{n}]") for n, row in enumerate(rows)]

    def rendered(self, row: Row, where: str) -> Rendered:
        """Tokens and weights of a row.

        Raises:
            DataError: it has none of the forms, or two; it is too long, or none of its tokens trains.
        """
        forms = [name for name in ("messages", "prompt", "tokens") if getattr(row, name) is not None]
        if len(forms) != 1:
            raise DataError(where, f"it has {' and '.join(forms) or 'none'} of messages, prompt and tokens",
                            action="give one of them")  # fmt: skip
        if (row.prompt is None) != (row.completion is None):
            raise DataError(where, "prompt and completion belong together", action="give both")
        if row.tokens is None and not (row.weights is None and row.fields is None):
            raise DataError(where, "weights and fields go with tokens", action="leave them out, or give tokens")
        tokenised = self._tokens_of(row, where)
        if len(tokenised.tokens) < 2 or not any(tokenised.weights[1:]):
            raise DataError(where, "nothing in it trains", action="give something to predict")
        if self.longest is not None and len(tokenised.tokens) - 1 > self.longest:
            raise DataError(
                where,
                f"{len(tokenised.tokens) - 1} positions, {self.longest} are allowed",
                action="shorten it, or raise train.max_length in new_session",
            )
        return tokenised

    def _tokens_of(self, row: Row, where: str) -> Rendered:
        if row.messages is not None:
            messages = _messages(row.messages)
            if not any(message.role == "assistant" for message in messages):
                raise DataError(where, "no message of the assistant", action="end it with what it should say")
            return self.context.renderer.render(Conversation(messages))
        if row.tokens is not None:
            weights = tuple(row.weights) if row.weights is not None else (1.0,) * len(row.tokens)
            if len(weights) != len(row.tokens):
                raise DataError(where, f"{len(weights)} weights for {len(row.tokens)} tokens", action="give one each")
            return Rendered(tuple(row.tokens), weights)
        assert row.prompt is not None and row.completion is not None
        return render_completion(PromptCompletion(row.prompt, row.completion), self.context.tokenizer)

    def data(self, rows: Sequence[Row]) -> list[Datum]:
        """An example per row."""
        built = []
        for n, (row, rendered) in enumerate(zip(rows, self.all_rendered(rows), strict=True)):
            where = f"rows[{n}]"
            datum = Datum.from_tokens(rendered.tokens, rendered.weights, id=where)
            built.append(_with_fields(datum, row.fields or {}, where))
        return built

    def prompts(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        """Token ids of a call's prompts.

        Raises:
            DataError: one of them cannot be read, or their text is more than is read at once.
        """
        texts = [(prompt.text or "", *_contents(prompt.messages)) for prompt in prompts]
        _check_length(texts, self.context.facts.max_positions, "prompts")
        return [self.prompt(prompt, f"prompts[{n}]") for n, prompt in enumerate(prompts)]

    def prompt(self, prompt: Prompt, where: str) -> list[int]:
        """Token ids of a prompt.

        Raises:
            DataError: it has none of the forms, or two, or no tokens.
        """
        forms = [name for name in ("messages", "text", "tokens") if getattr(prompt, name) is not None]
        if len(forms) != 1:
            raise DataError(where, f"it has {' and '.join(forms) or 'none'} of messages, text and tokens",
                            action="give one of them")  # fmt: skip
        if prompt.messages is not None:
            ids = list(
                self.context.renderer.prompt(self.opening.before(_messages(prompt.messages)), self.opening.tools)
            )
        elif prompt.text is not None:
            tokenizer = self.context.tokenizer
            ids = [*text_opening(tokenizer), *tokenizer.encode(prompt.text)]
        else:
            ids = list(prompt.tokens or ())
        if not ids:
            raise DataError(where, "it is empty", action="begin it with at least one token")
        return ids

    def text(self, tokens: Sequence[int]) -> str:
        """The text of token ids, special ones spelled."""
        return self.context.tokenizer.decode(list(tokens), skip_special=False)


class Readers:
    """A reader for each session's model, made at its first use. Contexts are kept by base model."""

    def __init__(self, service: FaceService) -> None:
        self._service = service
        self._contexts: dict[str, Context] = {}
        self._openings: dict[str, Opening] = {}
        self._lock = threading.Lock()

    def of(self, session: Mapping[str, Any]) -> Reader:
        """For a session, as the service describes it."""
        base = str(session["base"])
        with self._lock:
            if base not in self._contexts:
                context = self._service.context.context(self._service.served[base])
                _ = context.tokenizer, context.renderer  # inside the lock, so that two calls do not read it at once
                self._contexts[base] = context
                self._openings[base] = opening_of(context.model.reference)
        longest = (session["recipe"].get("train") or {}).get("max_length")
        return Reader(self._contexts[base], longest, self._openings[base])


def _contents(messages: Sequence[Any] | None) -> list[str]:
    return [message.content for message in messages or ()]


def _check_length(texts: Sequence[Sequence[str]], positions: int | None, where: str) -> None:
    """Check the sizes of texts before a tokenizer reads them.

    Args:
        texts: of each row.
        positions: tokens that a row may have.

    Raises:
        DataError: a row's texts surely have more, or all texts exceed the limit.
    """
    for n, of_row in enumerate(texts):
        if most := too_long(of_row, positions):
            raise DataError(f"{where}[{n}]", f"more than {most:,} characters", action="shorten it")
    if most := too_long(chain.from_iterable(texts), None):
        raise DataError(where, f"more than {most:,} characters together", action="send fewer at once")


def _messages(sent: Sequence[Any]) -> tuple[Message, ...]:
    return tuple(Message(message.role, message.content) for message in sent)


def _with_fields(datum: Datum, fields: Mapping[str, Sequence[float]], where: str) -> Datum:
    for name, values in fields.items():
        if len(values) != len(datum):
            raise DataError(f"{where}.fields.{name}", f"{len(values)} numbers for {len(datum)} targets",
                            action="give one for each token but the first")  # fmt: skip
    more = {name: np.asarray(values, np.float32) for name, values in fields.items()}
    return replace(datum, fields={**datum.fields, **more}) if more else datum
