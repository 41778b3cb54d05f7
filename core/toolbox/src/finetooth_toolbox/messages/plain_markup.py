"""Plain text that spells control tokens: rendered chat markup in a column of text, which many notebooks make.

Documents and raw prompts are plain characters, whatever they spell, unless the recipe says `data.markup: special`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from finetooth_hooks.data.examples import Example, Labelled, Pair, PromptCompletion, Stepwise, Task, Text
from finetooth_hooks.protocols import Tokenizer

SPELLED = re.compile(
    r"<[|\uff5c][^<>\s]{1,60}?[|\uff5c]>|</?s>|<(?:bos|eos|pad)>|</?(?:start|end)_of_[a-z_]{2,12}>|\[/?[A-Z_]{3,24}\]"
)
"""How families spell the tokens that structure a conversation."""


class PlainMarkup:
    """Finds control tokens of one tokenizer in text that is read as plain characters."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._known: dict[str, bool] = {}

    def first(self, text: str) -> str:
        """The first control token that a text spells; empty if none."""
        return next((match.group() for match in SPELLED.finditer(text) if self._is_control(match.group())), "")

    def notice(self, example: Example) -> str:
        """What there is to tell of an example whose plain text spells one; empty if none does."""
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
    """The texts of an example that stand in no message and no segment."""
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
        sides = (example.prompt, *example.steps)  # steps behind messages are what a message says
    elif isinstance(example, Task):
        sides = (example.prompt,)
    for side in sides:
        if isinstance(side, str):
            yield side
