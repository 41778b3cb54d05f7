"""What a tokenizer without a chat template is read and written with: texts need none, conversations are refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from finetooth_hooks import Conversation, Message, Parsed, RecipeError, Rendered
from finetooth_hooks.bases import RendererBase
from finetooth_hooks.data.examples import TrainOn
from finetooth_hooks.protocols import Tokenizer


class WithoutTemplate(RendererBase):
    """Knows what ends a text, so that base models learn from texts and continue them; the first conversation is an
    error.

    Raises:
        RecipeError: the tokenizer has no end-of-text token either.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        if tokenizer.eos_id is None:
            self._refuse()
        self.stop_ids: tuple[int, ...] = (tokenizer.eos_id,)

    def render(self, conversation: Conversation, *, train_on: TrainOn = "assistant") -> Rendered:
        self._refuse()

    def prompt(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = ()) -> tuple[int, ...]:
        self._refuse()

    def parse(self, tokens: Sequence[int]) -> Parsed:
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise RecipeError(
            "data.renderer",
            "the tokenizer has no chat template, as base models often have none",
            action="set data.renderer to one that is made for the family (chatml, llama3), or give a template file",
        )
