"""Renderers turn messages into tokens; processors turn pictures, sounds and videos into what a
model reads."""

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
    """Whether a model shows a markup: all of its marks stand in the model's chat template; in the tokenizer of a model
    without a template, all are tokens.

    Args:
        marks: of a renderer, for models of this type; None or empty if it is not recognised.
        tokenizer: the model's own; None if it is not read.
    """
    if not marks or tokenizer is None:
        return False
    template = tokenizer.chat_template
    return all(mark in template if template else tokenizer.token_id(mark) is not None for mark in marks)


class Renderer(Protocol):
    """Messages to tokens with loss weights, and back; built with the model's tokenizer (`context.tokenizer`).

    A renderer derives from `finetooth_hooks.RendererBase`, where `extension` is False and
    `template` None.
    """

    @property
    def capabilities(self) -> frozenset[str]:
        """Words of `finetooth_hooks.capabilities`; for renderers there are none yet."""
        ...

    @property
    def extension(self) -> bool:
        """The prompt for turn k + 1 begins with the tokens of the conversation up to and with turn k, for every
        conversation: then a rollout of several turns can keep its key-value cache, and one sequence can train all its
        turns."""
        ...

    @property
    def template(self) -> str | None:
        """The Jinja chat template that it renders by, its variables set; None: its markup is written by hand, and what
        is shipped gets a template that is learned from what it writes."""
        ...

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Token ids that end an assistant message."""
        ...

    def render(self, conversation: Conversation, *, train_on: TrainOn = "assistant") -> Rendered:
        """Tokens of the whole conversation; the trained messages' content and end-of-turn weigh 1, everything else 0.

        Raises:
            DataError: a role or shape the family cannot say.
        """
        ...

    def prompt(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = ()) -> tuple[int, ...]:
        """Tokens up to where the assistant begins to speak.

        Raises:
            DataError: a message holds more than text, for which tokens alone do not stand.
        """
        ...

    def shown_prompt(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = ()) -> Rendered:
        """As `prompt`, with the places of pictures, sounds and videos; nothing trains.

        Raises:
            DataError: the family takes none of the kind, or one of them cannot be used.
        """
        ...

    def parse(self, tokens: Sequence[int]) -> Parsed:
        """Read an assistant message back from its tokens."""
        ...


@dataclass(frozen=True)
class MediumPlace:
    """How a picture, sound or video stands in text.

    Attributes:
        text: what takes the place of the chat template's placeholder, special tokens spelled.
        start, stop: half-open range of its characters that stand for it; the rest is markup around it.
        medium: as it was given, its `sha256` known.
        size: before the processor changes it, for showing: `640x480`, `3.2 s`, `8 frames of 64x64`.
    """

    text: str
    start: int
    stop: int
    medium: Medium
    size: str


class Processor(Protocol):
    """Pictures, sounds and videos as one model was trained to see and hear them; built for the recipe's model."""

    @property
    def kinds(self) -> tuple[MediumKind, ...]:
        """What the model takes in addition to text.

        Raises:
            RecipeError: nothing.
        """
        ...

    def placeholder(self, kind: MediumKind) -> str:
        """What the model's chat template writes for one of a kind, one special token.

        Raises:
            DataError: the model takes none of the kind.
            RecipeError: what comes with the model does not work here.
        """
        ...

    def token_ids(self, kind: MediumKind) -> frozenset[int]:
        """Ids of the tokens in whose place the model reads features of one of a kind.

        Raises:
            DataError, RecipeError: as `placeholder`.
        """
        ...

    def place(self, medium: Medium) -> MediumPlace:
        """Open one, make sure that it is whole, and say what it becomes among the tokens.

        Raises:
            DataError: it is missing, broken, too large, or of a kind that the model does not take; names it.
        """
        ...

    def inputs(self, media: Sequence[MediumChunk]) -> Mapping[str, Any]:
        """What the model's forward takes for these in addition to tokens, in this order: NumPy arrays by argument."""
        ...

    def save(self, folder: Path) -> None:
        """Write its settings into the folder of a model."""
        ...
