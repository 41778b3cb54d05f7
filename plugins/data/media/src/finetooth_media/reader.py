"""Readers of one kind of media for one model, and their common code."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Protocol

from finetooth_hooks import RecipeError
from finetooth_hooks.data.examples import MediumKind
from finetooth_hooks.protocols import ModelInfo
from finetooth_toolbox.files.hub import without_retries
from finetooth_toolbox.text.nearest import nearest

Placed = tuple[str, int, int]
"""The text of a medium, and the half-open range of its characters for the medium itself."""


class Reader(Protocol):
    """Opens one kind of media, and makes the model's inputs.

    Attributes:
        placeholder: the chat template's text for a medium.
        token_ids: in whose place the model reads features.
    """

    placeholder: str
    token_ids: frozenset[int]

    def place(self, content: bytes, name: str) -> tuple[Placed, str]:
        """Its representation in text, and its size in words.

        Raises:
            DataError: it cannot be opened, or the model does not take it as it is.
        """
        ...

    def inputs(self, contents: Sequence[bytes]) -> Mapping[str, Any]:
        """Arguments of the model's forward, NumPy arrays.

        Raises:
            DataError: one cannot be opened.
        """
        ...

    def save(self, folder: Path) -> None:
        """Write its settings into the folder of a model."""
        ...


def folder_of(info: ModelInfo) -> str:
    """The folder or reference of the model's processor files."""
    return str(info.files[0].parent) if info.files else info.reference


@contextmanager
def explained(info: ModelInfo, what: str) -> Iterator[None]:
    """Turn transformers' exceptions into a line that names the model.

    Args:
        what: the loaded part, `image processor`.
    """
    try:
        with nullcontext() if info.files else without_retries():
            yield
    except (OSError, ValueError, TypeError, KeyError, ImportError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise RecipeError(
            "model", f"the {what} of {info.reference} does not load: {reason}", action="choose another model"
        ) from error


def check_settings(kind: MediumKind, settings: Collection[str], known: Collection[str]) -> None:
    """Checks that the model's processor takes the recipe's settings.

    Args:
        settings: names that the recipe gives under `data.processor.KIND`.
        known: those that the model's processor takes.

    Raises:
        RecipeError: it takes one of them not.
    """
    for name in sorted(set(settings) - set(known)):
        near = nearest(name, list(known))
        raise RecipeError(
            f"data.processor.{kind}",
            f"the model's {kind} processor knows no {name!r}" + (f"; did you mean {near}?" if near else ""),
            action=f"use {', '.join(sorted(known))}",
        )


def stands(text: str, spelled: Sequence[str]) -> Placed:
    """A text with the range from the first to the last of the tokens in it that stand for features.

    Args:
        spelled: those tokens; at least one is in the text.
    """
    starts = [at for token in spelled if (at := text.find(token)) >= 0]
    ends = [text.rfind(token) + len(token) for token in spelled if token in text]
    return text, min(starts), max(ends)
