"""Datum: one tokenised sequence, its targets, and what the loss needs per target or per sequence.

It is a superset of the Tinker protocol's datum: inputs and targets are aligned (`targets[i]` is the token to predict
after `input[: i + 1]`), so remote clients and local methods use the same format.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from finetooth_hooks.data.examples import CALLED, MediumKind

IntArray = NDArray[np.int64]
"""Ids and indices."""
FloatArray = NDArray[np.float64] | NDArray[np.float32]
"""Weights, advantages and other numbers of targets."""
BoolArray = NDArray[np.bool_]
"""Which targets count."""


@dataclass(frozen=True, eq=False)
class TokenChunk:
    """A run of token ids, shape (n,), int64."""

    tokens: IntArray

    def __post_init__(self) -> None:
        object.__setattr__(self, "tokens", _frozen(np.asarray(self.tokens, dtype=np.int64)))

    def __len__(self) -> int:
        return int(self.tokens.shape[0])


@dataclass(frozen=True, eq=False)
class MediumChunk:
    """An encoded picture, sound or video in the place of `length` tokens. Use one of the three kinds.

    Attributes:
        data: its bytes, not decoded.
        format: from their first bytes; `""` leaves it to the decoder.
        tokens: (length,) placeholder ids for the model's embedding; None if unknown.
    """

    kind: ClassVar[MediumKind]
    data: bytes
    format: str
    length: int
    tokens: IntArray | None = None

    def __post_init__(self) -> None:
        if self.tokens is not None:
            object.__setattr__(self, "tokens", _frozen(np.asarray(self.tokens, dtype=np.int64)))
            if self.tokens.shape != (self.length,):
                raise ValueError(
                    f"{CALLED[self.kind]} of length {self.length} has {self.tokens.shape} placeholder tokens"
                )

    def __len__(self) -> int:
        return self.length


@dataclass(frozen=True, eq=False)
class ImageChunk(MediumChunk):
    """A picture; `format` is `png`, `jpeg` or empty."""

    kind = "image"


@dataclass(frozen=True, eq=False)
class AudioChunk(MediumChunk):
    """A sound; `format` is `wav` or empty."""

    kind = "audio"


@dataclass(frozen=True, eq=False)
class VideoChunk(MediumChunk):
    """A video: a file with frames, or `finetooth_hooks.data.frames.pack_frames` of pictures; `format` is empty."""

    kind = "video"


Chunk = TokenChunk | MediumChunk
"""A part of a model's input."""


@dataclass(frozen=True, eq=False)
class Datum:
    """One sequence of N positions.

    Attributes:
        input: chunks whose lengths sum to N.
        targets: (N,) or (N, K) token ids, aligned with the inputs.
        mask: (N,) which targets count. Default: where the field `weights` is not zero, else all.
        fields: arrays of length N by name (`weights`, `advantages`, `old_logprobs`, ...), float.
        scalars: numbers per sequence by name (`label`, `margin`, ...).
        group: sequences of one preference pair or rollout group have the same key and are adjacent.
        positions: (N,) position ids; default 0..N-1.
        parents: (N,) for each position the index of the earlier position that it continues; -1 where a sequence begins.
            Default: the position before, `-1, 0, .., N-2`. A position attends to itself and to its path to the
            beginning; distances are those of position ids. A segment begins wherever a position does not continue the
            previous one: -1 begins another sequence (packing), and several segments may continue the same position (a
            tree: shared prefixes, blocks along a document). A backend refuses data whose segments it cannot keep apart,
            or trees that it cannot compute.
        id: its source, `train.jsonl:17`; named in errors.
        place: its index in the optimizer step, from 0; keys dropout, so that layout, order and rank do not change the
            masks. None: the engine counts a step's examples as they come. Code that splits a step among ranks sets it.

    Raises:
        ValueError: lengths disagree; the message names the datum and the field.
    """

    input: tuple[Chunk, ...]
    targets: IntArray
    mask: BoolArray = None  # type: ignore[assignment]  # resolved in __post_init__
    fields: Mapping[str, FloatArray] = field(default_factory=dict)
    scalars: Mapping[str, float] = field(default_factory=dict)
    group: str | None = None
    positions: IntArray | None = None
    parents: IntArray | None = None
    id: str = ""
    place: int | None = None

    def __post_init__(self) -> None:
        set_ = object.__setattr__
        set_(self, "input", tuple(self.input))
        set_(self, "targets", _frozen(np.asarray(self.targets, dtype=np.int64)))
        set_(self, "fields", {name: _frozen(np.asarray(values)) for name, values in self.fields.items()})
        n = sum(len(chunk) for chunk in self.input)
        if self.mask is None:
            weights = self.fields.get("weights")
            mask = np.ones(n, dtype=np.bool_) if weights is None else np.asarray(weights != 0)
            if mask.ndim == 2:
                mask = mask.any(axis=1)
            set_(self, "mask", mask)
        set_(self, "mask", _frozen(np.asarray(self.mask, dtype=np.bool_)))
        named: dict[str, Any] = {"targets": self.targets, "mask": self.mask, **self.fields}
        for name in ("positions", "parents"):
            if getattr(self, name) is not None:
                set_(self, name, _frozen(np.asarray(getattr(self, name), dtype=np.int64)))
                named[name] = getattr(self, name)
        for name, values in named.items():
            if values.shape[:1] != (n,):
                raise ValueError(f"datum {self.id!r}: {name} has shape {values.shape}, but the input has {n} positions")

    def __len__(self) -> int:
        return int(self.targets.shape[0])

    @property
    def tokens(self) -> IntArray:
        """(N,) input token ids.

        Raises:
            ValueError: the input holds more than tokens.
        """
        if not all(isinstance(chunk, TokenChunk) for chunk in self.input):
            what = " and ".join(dict.fromkeys(CALLED[chunk.kind] for _, chunk in self.media))
            raise ValueError(f"datum {self.id!r} holds {what}; its input is not only tokens")
        return np.concatenate(
            [chunk.tokens for chunk in self.input if isinstance(chunk, TokenChunk)] or [np.zeros(0, np.int64)]
        )

    @property
    def placeholder_tokens(self) -> IntArray:
        """(N,) input token ids, with a chunk's placeholders at the positions of a picture or sound.

        Raises:
            ValueError: one has none.
        """
        if all(isinstance(chunk, TokenChunk) for chunk in self.input):
            return self.tokens
        filled = [chunk.tokens for chunk in self.input]
        if any(tokens is None for tokens in filled):
            raise ValueError(f"datum {self.id!r} holds {CALLED[self.media[0][1].kind]} without placeholder tokens")
        return np.concatenate([tokens for tokens in filled if tokens is not None])

    @property
    def media(self) -> tuple[tuple[int, MediumChunk], ...]:
        """Pictures, sounds and videos with the position of their first token, in order."""
        placed, at = [], 0
        for chunk in self.input:
            if isinstance(chunk, MediumChunk):
                placed.append((at, chunk))
            at += len(chunk)
        return tuple(placed)

    @classmethod
    def from_tokens(
        cls,
        tokens: Sequence[int] | NDArray[np.integer[Any]],
        weights: Sequence[float] | NDArray[np.floating[Any]] | None = None,
        *,
        scalars: Mapping[str, float] | None = None,
        group: str | None = None,
        id: str = "",
        media: Sequence[tuple[int, MediumChunk]] = (),
    ) -> Datum:
        """A datum that reads `tokens[:-1]` and predicts `tokens[1:]`.

        Args:
            tokens: L token ids, L >= 2.
            weights: L loss weights; `weights[i]` is the weight of predicting `tokens[i]`. Default: all 1.
            media: index of the first placeholder token of each picture, sound or video, and the medium; in order.

        Raises:
            ValueError: fewer than two tokens, another number of weights than tokens, or media that overlap or reach
                the last token.
        """
        if len(tokens) < 2:
            raise ValueError(f"datum {id!r}: {len(tokens)} token(s); predicting needs at least 2")
        if weights is not None and len(weights) != len(tokens):
            raise ValueError(f"datum {id!r}: {len(weights)} weights for {len(tokens)} tokens")
        ids = np.asarray(tokens, dtype=np.int64)
        fields = {} if weights is None else {"weights": np.asarray(weights[1:], dtype=np.float32)}
        chunks = _chunks(ids[:-1], media, id) if media else (TokenChunk(ids[:-1]),)
        return cls(chunks, ids[1:], fields=fields, scalars=scalars or {}, group=group, id=id)


def _chunks(ids: IntArray, media: Sequence[tuple[int, MediumChunk]], where: str) -> tuple[Chunk, ...]:
    """Runs of tokens with the media between them."""
    chunks: list[Chunk] = []
    at = 0
    for start, medium in media:
        stop = start + medium.length
        if start < at or stop > len(ids):
            raise ValueError(f"datum {where!r}: {CALLED[medium.kind]} at {start} to {stop} of {len(ids)} positions")
        if start > at:
            chunks.append(TokenChunk(ids[at:start]))
        chunks.append(replace(medium, tokens=ids[start:stop]))
        at = stop
    if at < len(ids):
        chunks.append(TokenChunk(ids[at:]))
    return tuple(chunks)


def _frozen(values: NDArray[Any]) -> NDArray[Any]:
    """A read-only view, so that a step cannot change an example that another step shares."""
    view = values.view()
    view.flags.writeable = False
    return view
