"""Rows and examples: data before it becomes tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, ClassVar, Literal

ROLES = ("system", "user", "assistant", "tool")
"""Roles a message may have."""

TrainOn = Literal["assistant", "last", "all", "custom"]
"""Which messages train: every assistant message, the last one only, all, or only those that the row marks
(`Message.train`, `Message.weights`)."""


@dataclass(frozen=True)
class Row:
    """One row as a source read it.

    Attributes:
        id: file and line, or `source:split:index`; unique within a source; named in every error about the row.
        values: columns by name.
        folder: of files that the row names, such as images or sounds; None if it may name none.
    """

    id: str
    values: Mapping[str, Any]
    folder: Path | None = None


MediumKind = Literal["image", "audio", "video"]
"""Kinds of content besides text."""
CALLED: Mapping[MediumKind, str] = {"image": "an image", "audio": "a sound", "video": "a video"}
"""The word for one of a kind, in messages."""
PLURALS: Mapping[MediumKind, str] = {"image": "images", "audio": "sounds", "video": "videos"}
"""The word for several."""


@dataclass(frozen=True)
class Medium:
    """A picture, a sound or a video, encoded, not opened yet. Use one of the three kinds.

    Attributes:
        name: from the row, for messages.
        path: its file; None if `content` holds it.
        content: its bytes; empty if `path` names them.
        sha256: of the bytes, once read, to detect later changes of the file.
    """

    kind: ClassVar[MediumKind]
    name: str
    path: Path | None = None
    content: bytes = b""
    sha256: str = ""

    @property
    def files(self) -> Mapping[Path, str]:
        """Its files, each with the SHA-256 of the content; empty if not read."""
        return {} if self.path is None else {self.path: self.sha256}

    def known(self, content: bytes) -> Medium:
        """The same, with the hash of its content."""
        return replace(self, sha256=sha256(content).hexdigest())

    def read(self) -> bytes:
        """The encoded bytes.

        Raises:
            DataError: the file is missing or has changed.
        """
        from finetooth_hooks.errors import DataError

        if self.path is None:
            return self.content
        called = f"{self.kind} {self.name}"
        try:
            content = self.path.read_bytes()
        except OSError as error:
            problem = f"{called}: it cannot be read: {error.strerror or error}"
            raise DataError("", problem, action="check the path") from error
        if self.sha256 and sha256(content).hexdigest() != self.sha256:
            problem = f"{called}: {self.path} changed since the row was prepared"
            raise DataError("", problem, action="start the run again")
        return content


@dataclass(frozen=True)
class Image(Medium):
    """An encoded picture (PNG, JPEG, ...)."""

    kind = "image"


@dataclass(frozen=True)
class Audio(Medium):
    """An encoded sound (WAV, FLAC, ...)."""

    kind = "audio"


@dataclass(frozen=True)
class Video(Medium):
    """A file with several frames, or pictures that are its frames.

    Attributes:
        frames: in order, with empty `path` and `content`; empty if one file holds them.
        fps: frames per second; None if unknown.
    """

    kind = "video"
    frames: tuple[Image, ...] = ()
    fps: float | None = None

    @property
    def files(self) -> Mapping[Path, str]:
        parts = [super().files, *(frame.files for frame in self.frames)]
        return {path: digest for files in parts for path, digest in files.items()}

    def known(self, content: bytes) -> Medium:
        frames = tuple(replace(frame, sha256=sha256(frame.read()).hexdigest()) for frame in self.frames)
        return replace(self, sha256=sha256(content).hexdigest(), frames=frames)

    def read(self) -> bytes:
        """The file; of frames a ZIP archive that holds them unchanged, in order.

        Raises:
            DataError: as `Medium.read`.
        """
        from finetooth_hooks.data.frames import pack_frames

        return pack_frames([frame.read() for frame in self.frames], self.fps) if self.frames else super().read()


@dataclass(frozen=True)
class Placed:
    """The place of a medium in a message.

    Attributes:
        at: before this character of the content; several at one place keep their order.
    """

    at: int
    medium: Medium


@dataclass(frozen=True)
class Weighted:
    """Characters of a text with another weight than their message.

    Attributes:
        start, stop: half-open range of characters.
        weight: of predicting them; 0: they do not train.
    """

    start: int
    stop: int
    weight: float


@dataclass(frozen=True)
class Message:
    """One message of a conversation.

    Attributes:
        role: one of `ROLES`.
        content: its text; may be empty only with tool calls.
        reasoning: reasoning text that precedes the content, if kept apart.
        tool_calls: calls in the OpenAI shape, arguments as objects.
        name: of the tool, for role `tool`.
        tool_call_id: the call that a tool's message answers, for families that use it.
        train: overrides `train_on` for this message.
        weights: disjoint ranges of the content with their own weight, in order; the rest follows `train`.
        reasoning_weights: likewise of the reasoning.
        media: pictures, sounds and videos in the content, in order. The content is the text around them; if a renderer
            ignores them (not in `Rendered.media`), the row is refused.
    """

    role: str
    content: str
    reasoning: str = ""
    tool_calls: tuple[Mapping[str, Any], ...] = ()
    name: str = ""
    train: bool | None = None
    weights: tuple[Weighted, ...] = ()
    reasoning_weights: tuple[Weighted, ...] = ()
    tool_call_id: str = ""
    media: tuple[Placed, ...] = ()


@dataclass(frozen=True)
class Conversation:
    """Messages in order, with the tools they may call."""

    called = "a conversation"
    messages: tuple[Message, ...]
    tools: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True)
class Text:
    """A document: every token trains."""

    called = "a plain text"
    text: str


@dataclass(frozen=True)
class PromptCompletion:
    """A raw prompt and its completion, without any chat markup: only the completion trains."""

    called = "a prompt with its completion"
    prompt: str
    completion: str


@dataclass(frozen=True)
class Segments:
    """Text in pieces, each trained or not; without chat markup or separators."""

    called = "a text in segments"
    pieces: tuple[tuple[str, bool], ...]


Side = tuple[Message, ...] | str
"""Messages, or raw text without chat markup."""


@dataclass(frozen=True)
class Pair:
    """A preferred and a rejected answer to one prompt.

    Attributes:
        prompt, chosen, rejected: all messages or all text; the answers without the prompt.
        margin: how much better the first is, if the row says.
    """

    called = "a preference pair"
    prompt: Side
    chosen: Side
    rejected: Side
    margin: float | None = None
    tools: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True)
class Labelled:
    """An answer with a label: whether it is desirable, or how good it is."""

    called = "a labelled answer"
    prompt: Side
    completion: Side
    label: bool | float
    tools: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True)
class Stepwise:
    """An answer in labelled steps.

    Attributes:
        labels: of each step; None for a step without training.
    """

    called = "an answer in labelled steps"
    prompt: Side
    steps: tuple[str, ...]
    labels: tuple[bool | float | None, ...]


@dataclass(frozen=True)
class Task:
    """A prompt that the model answers while it learns; `columns` holds the row's other columns, for rewards.

    Attributes:
        from_text: the row gives the prompt as text, which became one message; rewards see that.
    """

    called = "a prompt without an answer"
    prompt: Side
    columns: Mapping[str, Any] = field(default_factory=dict)
    tools: tuple[Mapping[str, Any], ...] = ()
    from_text: bool = field(default=False, compare=False)


def messages_of(example: Example) -> tuple[Message, ...]:
    """All messages of an example; none where it is plain text."""
    sides: tuple[Any, ...] = ()
    if isinstance(example, Conversation):
        sides = (example.messages,)
    elif isinstance(example, Pair):
        sides = (example.prompt, example.chosen, example.rejected)
    elif isinstance(example, Labelled):
        sides = (example.prompt, example.completion)
    elif isinstance(example, Stepwise | Task):
        sides = (example.prompt,)
    return tuple(message for side in sides if not isinstance(side, str) for message in side)


def media_of(example: Example) -> tuple[Medium, ...]:
    """All pictures, sounds and videos of an example, in order."""
    return tuple(placed.medium for message in messages_of(example) for placed in message.media)


Example = Conversation | Text | PromptCompletion | Segments | Pair | Labelled | Stepwise | Task
"""A row's example. Each kind has a word for messages, `called`: `a preference pair`."""


@dataclass(frozen=True)
class LeftOut:
    """Returned instead of an example: the row is left out, and counted by the reason.

    Attributes:
        reason: a few words, equal for all such rows, `both answers are the same`.
        settled: the recipe itself excludes such rows, so no method refuses them.
    """

    reason: str
    settled: bool = False


ReadRow = Example | LeftOut | Sequence[Example | LeftOut]
"""A format's result for a row: an example, several, or none with the reason."""

NO_EXAMPLE = "its format makes no example of it"


def examples_in(read: ReadRow) -> tuple[Example | LeftOut, ...]:
    """The results of a row, one by one; at least one."""
    if isinstance(read, Sequence):
        return tuple(read) or (LeftOut(NO_EXAMPLE),)
    return (read,)


@dataclass(frozen=True)
class RenderedMedium:
    """A picture, sound or video among tokens.

    Attributes:
        start: index of its first placeholder token.
        length: number of placeholders, which do not train.
        medium: with its `sha256`.
        size: before the processor changes it, for display: `640x480`, `3.2 s`, `8 frames of 64x64`.
    """

    start: int
    length: int
    medium: Medium
    size: str = ""

    @property
    def stop(self) -> int:
        """Index of the first token after it."""
        return self.start + self.length


@dataclass(frozen=True)
class Rendered:
    """Tokens of an example with their loss weights.

    Attributes:
        tokens: L ids.
        weights: L floats; `weights[i]` is the weight of predicting `tokens[i]`.
        spans: half-open token ranges by message, for display.
        remarks: properties of this example to count, `ends with a question`.
        notices: likewise, but reported with the row's id: possible problems of the row.
        media: in order; their places hold the model's placeholder tokens.
        scalars: numbers of the sequence by name (`label`, `margin`), for its `Datum`.
        part: its role among several sequences of one example, `chosen`; the end of its `Datum`'s id, `ROW#chosen`.
        others: further sequences of the same example, without `others`. All are kept or left out together, are
            adjacent, and have the row's id as their `Datum.group`.
        left_out: why the row is left out, in words equal for all such rows; counted in the report. Empty: it is not.
        answers: half-open token ranges of the answers, trained or not, for `train.excess_length: truncate_turns`; set
            for rows that are too long, after rendering. Empty: the trained tokens are the answers.
    """

    tokens: tuple[int, ...]
    weights: tuple[float, ...]
    spans: tuple[tuple[int, int], ...] = field(default=())
    remarks: tuple[str, ...] = field(default=())
    notices: tuple[str, ...] = field(default=())
    media: tuple[RenderedMedium, ...] = field(default=())
    scalars: Mapping[str, float] = field(default_factory=dict)
    part: str = ""
    others: tuple[Rendered, ...] = field(default=())
    left_out: str = ""
    answers: tuple[tuple[int, int], ...] = field(default=())


@dataclass(frozen=True)
class Parsed:
    """A completion read back: the message it says, and how it ended (`stop`: the family's stop token was there;
    `length`: it was not)."""

    message: Message
    stop: Literal["stop", "length"]
