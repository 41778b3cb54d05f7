"""Renders preferences to tokens, also in worker processes.

An answer is rendered as part of the whole conversation, and only the answer trains. A check on tokens proves that both
answers of a pair have the same prompt: each rendered conversation must begin with the prompt of inference
(`Renderer.shown_prompt`). If only the tokens differ and not the text, the prompt's tokens are used.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from finetooth_hooks import Conversation, DataError, Example, Message, PromptCompletion, Rendered
from finetooth_hooks.context import Context
from finetooth_hooks.data.examples import Labelled, Pair, Side
from finetooth_hooks.data.preparation import Render
from finetooth_toolbox.messages.asked import as_asked
from finetooth_toolbox.messages.prompts import encode_document, render_completion

SAME = "chosen and rejected are the same"
NO_PROMPT = "it has no prompt"
TEXT_ACTION = "end the prompt with a line feed, or begin the answers with a blank"


class Bad(Exception):
    """The row has nothing to learn; the text gives the reason."""


def pairs(options: Mapping[str, Any], context: Context) -> Render:
    """Render a pair: tokens of the chosen answer, and of the rejected one.

    Args:
        options: `bad_rows`, as in `RowOptions`; `margins`: every row must have a margin.
    """
    answers = Answers(context)

    def render(example: Example) -> Rendered:
        if not isinstance(example, Pair):
            raise _refusal(example, "pairs of a chosen and a rejected answer", "chosen and rejected")
        if options["margins"] and example.margin is None:
            raise DataError("", "it has no margin", action="give every row one, or set the loss's margin_weight to 0")
        if not example.prompt:
            raise Bad(NO_PROMPT)
        if example.chosen == example.rejected:
            raise Bad(SAME)
        sides = []
        for part, answer, label in (("chosen", example.chosen, 1.0), ("rejected", example.rejected, 0.0)):
            rendered = answers.render(example.prompt, answer, example.tools, part)
            scalars = {"label": label, "margin": example.margin or 0.0}
            sides.append(replace(rendered, scalars=scalars, part=part))
        chosen, rejected = sides
        if chosen.tokens == rejected.tokens and _shown(chosen) == _shown(rejected):
            raise Bad(SAME)
        return replace(chosen, others=(rejected,))

    return _policy(render, options["bad_rows"])


def labelled(options: Mapping[str, Any], context: Context) -> Render:
    """Tokens of an answer with its label.

    Args:
        options: `bad_rows`, as in `RowOptions`.
    """
    answers = Answers(context)

    def render(example: Example) -> Rendered:
        if not isinstance(example, Labelled):
            raise _refusal(example, "single answers with a label", "completion and label")
        if example.label not in (True, False):
            raise Bad("its label is a number, not true or false")
        if not example.prompt:
            raise Bad(NO_PROMPT)
        rendered = answers.render(example.prompt, example.completion, example.tools, "")
        return replace(rendered, scalars={"label": float(example.label)})

    return _policy(render, options["bad_rows"])


def _policy(render: Callable[[Example], Rendered], bad_rows: str) -> Render:
    def decided(example: Example) -> Rendered:
        try:
            return render(example)
        except Bad as bad:
            if bad_rows == "drop":
                return Rendered((), (), left_out=str(bad))
            raise DataError("", str(bad), action="remove the row, or set method.bad_rows to drop") from bad

    return decided


def _refusal(example: Example, wanted: str, columns: str) -> DataError:
    return DataError(
        "",
        f"the row is a {type(example).__name__.lower()}, and the method learns from {wanted}",
        action=f"set method: dpo, or let data.format make {wanted}"
        if isinstance(example, Pair)
        else f"set another method, or data.format to what reads {columns}",
    )


@dataclass(frozen=True)
class Answers:
    """Renders answers to prompts."""

    context: Context

    def render(self, prompt: Side, answer: Side, tools: Sequence[Mapping[str, Any]], part: str) -> Rendered:
        """Tokens of prompt and answer; only the answer trains.

        Args:
            part: `chosen` or `rejected`, for messages; empty for an answer by itself.

        Raises:
            Bad: the answer is empty.
            DataError: the conversation cannot be rendered, or does not begin with the prompt.
        """
        name = f"its {part} answer" if part else "its answer"
        if _is_empty(answer):
            raise Bad(f"{name} is empty")
        if isinstance(prompt, str) and isinstance(answer, str):
            return self._text(prompt, answer, name)
        if isinstance(prompt, str) or isinstance(answer, str):
            raise DataError("", f"its prompt and {name} are not both texts or both messages", action="fix the format")
        return self._chat(prompt, answer, tuple(tools), name)

    def _text(self, prompt: str, answer: str, name: str) -> Rendered:
        tokenizer, markup = self.context.tokenizer, self.context.markup
        rendered = render_completion(PromptCompletion(prompt, answer), tokenizer, markup=markup)
        prompt_tokens = encode_document(prompt, tokenizer, markup)
        if rendered.tokens[: len(prompt_tokens)] != prompt_tokens:
            raise DataError("", f"the prompt and {name} share a token", action=TEXT_ACTION)
        return rendered

    def _chat(
        self, prompt: tuple[Message, ...], answer: tuple[Message, ...], tools: tuple[Mapping[str, Any], ...], name: str
    ) -> Rendered:
        if prompt[-1].role == "assistant" or answer[0].role != "assistant":
            what = "its prompt ends with" if prompt[-1].role == "assistant" else f"{name} does not begin with"
            raise DataError("", f"{what} the assistant's message", action="cut the row before an assistant's message")
        silent = tuple(replace(message, train=False, weights=(), reasoning_weights=()) for message in prompt)
        renderer = self.context.renderer
        rendered = renderer.render(Conversation((*silent, *answer), tools))
        prompt_tokens = renderer.shown_prompt(prompt, tools).tokens
        mended = as_asked(rendered, prompt_tokens, self.context.tokenizer)
        if mended is not None:
            return mended
        at = next((i for i, (a, b) in enumerate(zip(prompt_tokens, rendered.tokens, strict=False)) if a != b), 0)
        text = self.context.tokenizer.decode(prompt_tokens[at:])
        raise DataError(
            "",
            f"the row with {name} does not begin with the prompt as the renderer writes it: they differ from "
            f"token {at} on, where the prompt is {_shortened(text)!r}",
            action="give the answer as the renderer writes it (with its reasoning), or set data.renderer",
        )


def _shown(rendered: Rendered) -> list[str]:
    """The images, sounds and videos of a row."""
    return [place.medium.sha256 for place in rendered.media]


def _shortened(text: str, most: int = 60) -> str:
    return text if len(text) <= most else f"{text[:most]}..."


def _is_empty(answer: Side) -> bool:
    if isinstance(answer, str):
        return not answer.strip()
    return not any(message.content.strip() or message.tool_calls for message in answer)
