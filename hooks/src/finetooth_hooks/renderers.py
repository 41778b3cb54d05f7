"""Renderers turn messages into tokens; processors turn images into what a model reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from finetooth_hooks.examples import Conversation, Image, Message, Parsed, Rendered, TrainOn


class Renderer(Protocol):
    """Messages to tokens with loss weights, and back; built with the model's tokenizer (`context.tokenizer`).

    A renderer derives from `finetooth_hooks.RendererBase`, where `extension` is False.
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
            DataError: a message holds an image, for which tokens alone do not stand.
        """
        ...

    def shown_prompt(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = ()) -> Rendered:
        """As `prompt`, with the places of images; nothing trains.

        Raises:
            DataError: the family takes no images, or one of them cannot be used.
        """
        ...

    def parse(self, tokens: Sequence[int]) -> Parsed:
        """Read an assistant message back from its tokens."""
        ...


@dataclass(frozen=True)
class ImagePlace:
    """How an image stands in text.

    Attributes:
        text: what takes the place of the chat template's placeholder, special tokens spelled.
        start, stop: half-open range of its characters that stand for the image; the rest is markup around it.
        image: as it was given, its `sha256` known.
        width, height: in pixels, upright, before the processor resizes it.
    """

    text: str
    start: int
    stop: int
    image: Image
    width: int
    height: int


class Processor(Protocol):
    """Images as one model was trained to see them; built for the recipe's model."""

    @property
    def placeholder(self) -> str:
        """What the model's chat template writes for an image, one special token."""
        ...

    @property
    def token_ids(self) -> frozenset[int]:
        """Ids of the tokens in whose place the model reads image features."""
        ...

    def place(self, image: Image) -> ImagePlace:
        """Open an image, make sure that it is whole, and say what it becomes among the tokens.

        Raises:
            DataError: it is missing, broken, no image, or too large; names the image.
        """
        ...

    def inputs(self, images: Sequence[bytes]) -> Mapping[str, Any]:
        """What the model's forward takes beside the tokens for images in this order, NumPy arrays by argument.

        Args:
            images: encoded, as `Image.read` gives them.
        """
        ...

    def save(self, folder: Path) -> None:
        """Write its settings beside a model that goes with it."""
        ...
