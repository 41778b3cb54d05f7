"""Detects the spelling of control tokens in plain text, such as rendered chats in a text column from notebooks.

Documents and raw prompts are always plain characters, unless the recipe sets `data.markup: special`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from finetooth_hooks.data.examples import Example, Labelled, Pair, PromptCompletion, Stepwise, Task, Text
from finetooth_hooks.protocols import Tokenizer

SPELLED = re.compile(
    r"<[|\uff5c][^<>\s]{1,60}?[|\uff5c]>|</?s>|<(?:bos|eos|pad)>|</?(?:start|end)_of_[a-z_]{2,12}>|\[/?[A-Z_]{3,24}\]"
)
"""Spellings of the control tokens of conversations in model families."""


class PlainMarkup:
    """Finds spellings of one tokenizer's control tokens in plain text."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._known: dict[str, bool] = {}

    def first(self, text: str) -> str:
        """The first control token in a text; empty without one."""
        return next((match.group() for match in SPELLED.finditer(text) if self._is_control(match.group())), "")

    def notice(self, example: Example) -> str:
        """A notice about an example with a control token in plain text; empty without one."""
        spelled = next((token for text in plain_texts(example) if (token := self.first(text))), "")
        if not spelled:
            return ""
        return (
            f"its text spells control tokens ({spelled}), which are read as plain characters: a model that was trained "
            "with that markup never saw it so. data.markup: special reads them as tokens, as TRL and Unsloth do; rows "
            "with `segments` or `messages` also say what trains"
        )

    def _is_control(self, spelling: str) -> bool:
        if spelling not in self._known:
            if len(self._known) > 10_000:
                self._known.clear()
            id_ = self._tokenizer.token_id(spelling)
            self._known[spelling] = id_ is not None and not self._tokenizer.decode([id_], skip_special=True)
        return self._known[spelling]


def plain_texts(example: Example) -> Iterator[str]:
    """The texts of an example outside of messages and segments."""
    sides: tuple[object, ...] = ()
    if isinstance(example, Text):
        sides = (example.text,)
    elif isinstance(example, PromptCompletion):
        sides = (example.prompt, example.completion)
    elif isinstance(example, Pair):
        sides = (example.prompt, example.chosen, example.rejected)
    elif isinstance(example, Labelled):
        sides = (example.prompt, example.completion)
    elif isinstance(example, Stepwise) and isinstance(example.prompt, str):
        sides = (example.prompt, *example.steps)  # steps after messages are the content of a message
    elif isinstance(example, Task):
        sides = (example.prompt,)
    for side in sides:
        if isinstance(side, str):
            yield side
