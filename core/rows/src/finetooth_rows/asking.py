"""Makes the last answer of a row follow the same tokens as in inference: those of its prompt."""

from __future__ import annotations

from collections.abc import Iterator

from finetooth_hooks.context import Context
from finetooth_hooks.data.examples import Conversation, Rendered
from finetooth_hooks.errors import DataError
from finetooth_toolbox.messages.asked import as_asked

ASKED_OTHERWISE = (
    "the answer trains after other tokens than those that end its prompt, because the tokenizer splits the "
    "markup differently before a text: set data.renderer to one whose markup the tokenizer keeps in one piece"
)
ASKED_OTHERWISE_EARLIER = (
    "an answer before the last trains after other tokens than those that end its prompt, because the tokenizer "
    "splits the markup differently before a text: set method.train_on: last, or data.renderer to one whose "
    "markup the tokenizer keeps in one piece"
)


class Asking:
    """Compares rows with their prompts, for one run.

    Args:
        context: has tokenizer and renderer.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        self._differing: dict[tuple[str, str], bool] = {}

    def mended(self, example: Conversation, rendered: Rendered) -> Rendered:
        """The row with the tokens of its last prompt, if only those tokens differ and the text is the same."""
        last = len(example.messages) - 1
        if not self._differs(example, rendered, last):
            return rendered
        prompt = self._prompt(example, last) or ()
        row = as_asked(rendered, prompt, self._context.tokenizer) or rendered
        answer = row.tokens[len(prompt) :]
        encoded_anew = answer != rendered.tokens[len(rendered.tokens) - len(answer) :]
        return rendered if example.messages[last].weights and encoded_anew else row

    def notices(self, example: Conversation, rendered: Rendered) -> Iterator[str]:
        """Notices about answers that still follow other tokens than their prompts have."""
        last = len(example.messages) - 1
        known = len(rendered.spans) == len(example.messages)
        for i, (begin, end) in enumerate(rendered.spans if known else ()):
            if i < last and any(rendered.weights[begin:end]) and self._differs(example, rendered, i):
                yield ASKED_OTHERWISE_EARLIER
                break
        if self._differs(example, rendered, last):
            prompt = self._prompt(example, last)
            if prompt is not None and rendered.tokens[: len(prompt)] != prompt:
                yield ASKED_OTHERWISE

    def _differs(self, example: Conversation, rendered: Rendered, i: int) -> bool:
        """Whether the tokens before answer i differ from those of its prompt although the text is the same.

        The tokenisation depends on the markup and on the answer's beginning: each beginning is compared once.
        """
        messages = example.messages
        if i < 1 or rendered.media or messages[i].role != "assistant" or messages[i - 1].role not in ("user", "tool"):
            return False
        key = messages[i - 1].role, messages[i].content[:2]
        if key not in self._differing:
            prompt, decode = self._prompt(example, i), self._context.tokenizer.decode
            if prompt is None:
                return False
            other = rendered.tokens[: len(prompt)] != prompt
            self._differing[key] = other and decode(rendered.tokens).startswith(decode(prompt))
        return self._differing[key]

    def _prompt(self, example: Conversation, i: int) -> tuple[int, ...] | None:
        try:
            return tuple(self._context.renderer.prompt(example.messages[:i], example.tools))
        except DataError:  # this markup has no prompt here
            return None
