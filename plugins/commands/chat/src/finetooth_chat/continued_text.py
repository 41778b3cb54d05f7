"""A text that the model continues, in place of a conversation: what a base model without a chat template can do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click
from finetooth_hooks.bases import RendererBase
from finetooth_hooks.data.examples import Conversation, Message, Parsed, Rendered, TrainOn
from finetooth_hooks.errors import RecipeError, UserError

if TYPE_CHECKING:
    from finetooth_hooks.context import Context
    from finetooth_hooks.protocols import Renderer, Tokenizer

ONLY_TURNS = "with --text the model continues one text, which has no turns"


class TextRenderer(RendererBase):
    """Messages are pieces of one text, without a mark between them."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.stop_ids: tuple[int, ...] = () if tokenizer.eos_id is None else (tokenizer.eos_id,)

    def render(self, conversation: Conversation, *, train_on: TrainOn = "assistant") -> Rendered:
        tokens = self.prompt(conversation.messages)
        return Rendered(tokens, (0.0,) * len(tokens))

    def prompt(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = ()) -> tuple[int, ...]:
        from finetooth_toolbox.messages.prompts import encode_document

        return encode_document("".join(message.content for message in messages), self.tokenizer)

    def parse(self, tokens: Sequence[int]) -> Parsed:
        ended = bool(tokens) and tokens[-1] in self.stop_ids
        text = self.tokenizer.decode(tokens[:-1] if ended else tokens)
        return Parsed(Message("assistant", text), "stop" if ended else "length")


def renderer_for(context: Context, as_text: bool, only_turns: Mapping[str, object]) -> Renderer:
    """What the question is written with: the model's own renderer; for a text, and where the model has no chat
    template, which is said, a `TextRenderer`.

    Args:
        as_text: the user asks for a text that is continued.
        only_turns: what the user gave that a conversation alone has, by the names of options.

    Raises:
        RecipeError: the model has no chat template, and an option needs one.
        UserError: an option does not go with `--text`.
    """
    given = [option for option, value in only_turns.items() if value]
    if not as_text:
        try:  # refused before weights are loaded
            context.renderer.prompt([Message("user", "?")])
        except RecipeError:
            if given:
                raise
            click.echo("the model has no chat template: it continues what you type, as with --text", err=True)
        else:
            return context.renderer
    elif given:
        raise UserError(f"{given[0]} cannot be used with --text: {ONLY_TURNS}", action="leave one of them out")
    return TextRenderer(context.tokenizer)
