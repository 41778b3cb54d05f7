"""A reward model that was opened: texts in, numbers out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from finetooth_hooks import DataError, Datum, Message, PlanError
from finetooth_hooks.compute.heads import ScalarHead
from finetooth_hooks.context import Opened
from finetooth_hooks.data.examples import RenderedMedium, Side
from finetooth_hooks.entries import Method
from finetooth_toolbox.messages.answers import has_words, rendered_answer, separator_tokens, step_tokens, text_datum
from finetooth_toolbox.saved_heads import head_of

Steps = Literal["product", "min", "last", "mean"]
JOINED: Mapping[Steps, Callable[[Any], Any]] = {
    "product": np.prod, "min": np.min, "last": lambda scores: scores[-1], "mean": np.mean,
}  # fmt: skip
AT_ONCE = 256
"""Texts that are scored in one call, so that a large file is not held whole."""


@dataclass(frozen=True)
class Text:
    """What is to be scored.

    Attributes:
        id: for messages, `rows.jsonl:3`.
        steps: of the answer, where they are known; else a process reward model cuts it at its separator.
    """

    prompt: Side
    answer: Side
    tools: Sequence[Mapping[str, Any]] = ()
    id: str = ""
    steps: tuple[str, ...] = ()


@dataclass(frozen=True)
class Scored:
    """A score, and of a process reward model the probability of each step that it is right."""

    score: float
    steps: tuple[float, ...] = ()


@dataclass
class Scorer:
    """Scores texts with a model that has a scalar head.

    Args:
        opened: the model.
        joined: how a process reward model's steps become one score.
        separator: what ends a step; None: what the run was trained with, or a line feed.

    Weights are loaded with the first score; whatever is wrong with the model or the texts is found before.

    Raises:
        PlanError: the model has no scalar head.
    """

    opened: Opened
    joined: Steps = "min"
    separator: str | None = None
    _separator: tuple[int, ...] = field(default=(), init=False)

    def __post_init__(self) -> None:
        self.context = self.opened.context
        head = self._head()
        if head is None:
            raise PlanError(
                "model: it has no scalar head, so it gives no scores",
                action="name a run of method rm or prm, or a classifier with one label",
            )
        self.of_steps = head.exported_as == "token"
        text = self.separator or str(self.opened.options.get("separator", "\n"))
        self._text = text
        if self.of_steps:
            self._separator = separator_tokens(text, self.context.tokenizer, "separator")

    def _head(self) -> ScalarHead | None:
        """What the run's method trained, or what the model's config says that it has."""
        if self.opened.method:
            entry = self.context.catalog.get("method", self.opened.method).entry
            head = entry.head if isinstance(entry, Method) else None
            return None if head is None or head.exported_as == "none" else head
        return head_of(self.context.model.config)

    def score(self, texts: Sequence[Text]) -> list[Scored]:
        """A score for each text.

        Raises:
            DataError: an answer is empty, or a text is longer than the model was made for; names it.
        """
        return self.score_data([self.datum(text) for text in texts])

    def score_data(self, data: Sequence[Datum]) -> list[Scored]:
        """A score for each of what `datum` made."""
        need = "values" if self.of_steps else "scores"
        scored: list[Scored] = []
        for start in range(0, len(data), AT_ONCE):
            part = data[start : start + AT_ONCE]
            outputs = self.opened.engine.forward(part, returns=(need,), train=False).outputs
            for datum, each in zip(part, outputs, strict=True):
                scored.append(self._joined(np.asarray(each[need], dtype=np.float64), datum))
        return scored

    def _joined(self, output: Any, datum: Datum) -> Scored:
        if not self.of_steps:
            return Scored(float(output))
        steps = 1 / (1 + np.exp(-output[datum.mask]))
        return Scored(float(JOINED[self.joined](steps)), tuple(map(float, steps)))

    def datum(self, text: Text) -> Datum:
        """What the engine scores of a text.

        Raises:
            DataError: the answer is empty, or the text is longer than the model was made for; names it.
        """
        if not has_words(text.answer) and not text.steps:
            raise DataError(text.id, "the answer is empty", action="fill it, or remove the row")
        media: tuple[RenderedMedium, ...] = ()
        try:
            if self.of_steps:
                tokens, ends = step_tokens(text.prompt, text.steps or self._steps(text), self.context, self._separator)
            else:
                answer = text.answer if has_words(text.answer) else self._whole(text)
                read = rendered_answer(text.prompt, answer, self.context, text.tools)
                tokens, ends, media = read.tokens, (), read.media
        except DataError as error:
            raise DataError(text.id or error.where, error.problem, action=error.action) from error
        longest = self.context.facts.max_positions
        if 0 < longest < len(tokens):
            raise DataError(
                text.id,
                f"{len(tokens)} tokens, and the model was made for {longest}",
                action="shorten or remove the row",
            )
        return text_datum(tokens, ends, id=text.id, media=media)

    def _whole(self, text: Text) -> Side:
        """An answer in steps as one."""
        whole = self._text.join(text.steps)
        return whole if isinstance(text.prompt, str) else (Message("assistant", whole),)

    def _steps(self, text: Text) -> tuple[str, ...]:
        """The steps of an answer that is not cut yet."""
        answer = text.answer if isinstance(text.answer, str) else "".join(m.content for m in text.answer)
        return tuple(step for step in answer.split(self._text) if step.strip())
