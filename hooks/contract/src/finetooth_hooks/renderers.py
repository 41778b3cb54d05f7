"""Renderers turn messages into tokens; processors turn pictures, sounds and videos into a model's inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from finetooth_hooks.data.datum import MediumChunk
from finetooth_hooks.data.examples import Conversation, Medium, MediumKind, Message, Parsed, Rendered, TrainOn

if TYPE_CHECKING:
    from finetooth_hooks.models import Tokenizer


def shows(marks: Sequence[str] | None, tokenizer: Tokenizer | None) -> bool:
    """Whether a model shows signs of a markup: its chat template contains all marks; without a template, its tokenizer
    has all of them as tokens.

    Args:
        marks: of a renderer, for models of this type; None or empty: nothing identifies the markup.
        tokenizer: the model's own; None if it was not loaded.
    """
    if not marks or tokenizer is None:
        return False
    template = tokenizer.chat_template
    return all(mark in template if template else tokenizer.token_id(mark) is not None for mark in marks)


class Renderer(Protocol):
    """Turns messages into tokens with loss weights, and back; built with the model's tokenizer (`context.tokenizer`).

    A renderer derives from `finetooth_hooks.RendererBase`, where `extension` is False and
    `template` None.
    """

    @property
    def capabilities(self) -> frozenset[str]:
        """Words of `finetooth_hooks.capabilities`; for renderers there are none yet."""
        ...

    @property
    def extension(self) -> bool:
        """The prompt of turn k + 1 begins with the tokens of the conversation up to and including turn k, for every
        conversation. A rollout of several turns can then keep its key-value cache, and one sequence can train all its
        turns."""
        ...

    @property
    def template(self) -> str | None:
        """The Jinja chat template behind it, with its variables set. None: code writes the markup, and a saved model
        gets a template that is learned from the rendered text."""
        ...

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Token ids that end an assistant message."""
        ...

    def render(self, conversation: Conversation, *, train_on: TrainOn = "assistant") -> Rendered:
        """Tokens of the whole conversation; the trained messages' content and end-of-turn weigh 1, everything else 0.

        Raises:
            DataError: the markup cannot express a role or the shape of a message.
        """
        ...

    def prompt(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = ()) -> tuple[int, ...]:
        """Tokens up to the start of the assistant's answer.

        Raises:
            DataError: a message holds more than text, which tokens alone cannot represent.
        """
        ...

    def shown_prompt(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = ()) -> Rendered:
        """As `prompt`, with the places of pictures, sounds and videos; all weights are 0.

        Raises:
            DataError: the family does not support a kind of medium, or one of the files is unusable.
        """
        ...

    def parse(self, tokens: Sequence[int]) -> Parsed:
        """Read an assistant message back from its tokens."""
        ...


@dataclass(frozen=True)
class MediumPlace:
    """The representation of a picture, sound or video in text.

    Attributes:
        text: text instead of the chat template's placeholder, with special tokens spelled out.
        start, stop: half-open range of the characters of the medium; the rest is markup around it.
        medium: the given medium, with its `sha256`.
        size: of the original, for display: `640x480`, `3.2 s`, `8 frames of 64x64`.
    """

    text: str
    start: int
    stop: int
    medium: Medium
    size: str


class Processor(Protocol):
    """Prepares pictures, sounds and videos as in one model's training; built for the recipe's model."""

    @property
    def kinds(self) -> tuple[MediumKind, ...]:
        """The kinds of media that the model reads besides text.

        Raises:
            RecipeError: the model reads only text.
        """
        ...

    def placeholder(self, kind: MediumKind) -> str:
        """The special token that the model's chat template writes for a medium of a kind.

        Raises:
            DataError: the model does not support the kind.
            RecipeError: the model's own processor does not work here.
        """
        ...

    def token_ids(self, kind: MediumKind) -> frozenset[int]:
        """Ids of the tokens that the model replaces by features of a medium of a kind.

        Raises:
            DataError, RecipeError: as `placeholder`.
        """
        ...

    def place(self, medium: Medium) -> MediumPlace:
        """Open a medium, check that it is complete, and return its representation in text.

        Raises:
            DataError: the medium is missing, broken, too large, or of an unsupported kind; names it.
        """
        ...

    def inputs(self, media: Sequence[MediumChunk]) -> Mapping[str, Any]:
        """Inputs of the model's forward pass for these media besides tokens, in this order: NumPy arrays by
        argument."""
        ...

    def save(self, folder: Path) -> None:
        """Write its settings into the folder of a model."""
        ...
