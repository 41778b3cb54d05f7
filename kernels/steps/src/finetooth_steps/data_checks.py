"""Checks of an engine before it computes: refuses data that it cannot compute, or cannot compute together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from finetooth_hooks import DataError, Datum, EngineError, MediumChunk
from finetooth_hooks.data.examples import CALLED
from finetooth_hooks.sampling import ShownPrompt
from numpy.typing import NDArray

from finetooth_steps.groups import group_indices
from finetooth_steps.segments import NO_TREES, check_segments


def check_data(
    data: Sequence[Datum], *, vocab_size: int, max_positions: int, media: bool = False, obstacle: str = "",
    trees: str = NO_TREES,
) -> None:  # fmt: skip
    """Refuse what the engine cannot compute, before anything is computed.

    Args:
        vocab_size: ids must lie below it.
        max_positions: longest sequence the model was made for; 0 for no bound.
        media: the model takes images, sounds or videos.
        obstacle: why segments of a datum cannot be kept apart; empty if they can.
        trees: why segments that continue others cannot be computed; empty if they can.

    Raises:
        DataError: no data, an empty datum, an image or sound that cannot be read, segments that cannot be kept apart,
            an id outside the vocabulary, a sequence too long, a group that is torn apart, or data with one target a
            position mixed with data that have several; names the datum.
    """
    if not data:
        raise DataError("data", "the step holds no data", action="pass at least one datum")
    target_dims = data[0].targets.ndim, data[0].targets.shape[1:]
    for datum in data:
        where = datum.id or "a datum without id"
        _check_media(datum, where, media)
        if len(datum) == 0:
            raise DataError(where, "it has no positions", action="remove it")
        if max_positions and len(datum) > max_positions:
            raise DataError(
                where, f"{len(datum)} positions, but the model was made for {max_positions}",
                action="lower train.max_length",
            )  # fmt: skip
        if (datum.targets.ndim, datum.targets.shape[1:]) != target_dims:
            raise DataError(
                where,
                f"targets have shape {datum.targets.shape}, those of {data[0].id!r} {data[0].targets.shape}",
                action="give every position of a step the same number of targets",
            )
        _check_ids(where, "input", datum.placeholder_tokens, vocab_size)
        _check_ids(where, "target", datum.targets[datum.mask], vocab_size)
    check_segments(data, obstacle, trees=trees)
    group_indices(data)


def _check_media(datum: Datum, where: str, media: bool) -> None:
    """
    Raises:
        DataError: the datum holds an image, sound or video that this model or this backend cannot read.
    """
    chunks = [chunk for chunk in datum.input if isinstance(chunk, MediumChunk)]
    if not chunks:
        return
    called = CALLED[chunks[0].kind]
    if not media:
        raise DataError(where, f"it holds {called}, which the model cannot read", action="remove it")
    if any(chunk.tokens is None for chunk in chunks):
        raise DataError(
            where, f"{called} comes without the placeholder tokens of its place", action="give MediumChunk.tokens"
        )
    if datum.positions is not None:
        raise DataError(
            where, f"it has {called} and positions, which such a model decides itself", action="leave them out"
        )


def check_prompts(
    prompts: Sequence[Sequence[int]], *, vocab_size: int, max_positions: int,
    check_shown: Callable[[int, ShownPrompt], None],
) -> None:  # fmt: skip
    """Refuse prompts that the engine cannot continue.

    Args:
        vocab_size: ids must lie below it.
        max_positions: longest sequence the model was made for; 0 for no bound.
        check_shown: refuses a prompt that holds more than text, by its number.

    Raises:
        EngineError: a prompt is empty, leaves no room to answer, or holds an id that the model does not know.
    """
    for index, prompt in enumerate(prompts):
        if len(prompt) == 0:
            raise EngineError(f"prompt {index} is empty", action="begin it with at least one token")
        if max_positions and len(prompt) >= max_positions:
            raise EngineError(
                f"prompt {index} has {len(prompt)} tokens, and the model was made for {max_positions}: "
                "no room to answer",
                action="shorten it",
            )
        if isinstance(prompt, ShownPrompt):
            check_shown(index, prompt)
        if min(prompt) < 0 or max(prompt) >= vocab_size:
            raise EngineError(
                f"prompt {index} holds an id outside the vocabulary of {vocab_size}",
                action="use the tokenizer that belongs to the model",
            )


def check_fields(data: Sequence[Datum]) -> None:
    """Refuse data that a loss cannot read side by side, whichever of them share a micro-batch.

    Raises:
        DataError: a field (`weights` may be absent) or scalar that some data of the step have and others lack, or a
            field of another shape per position; names the datum.
    """
    fields = {name for datum in data for name in datum.fields} - {"weights"}
    scalars = {name for datum in data for name in datum.scalars}
    shapes: dict[str, tuple[int, ...]] = {}
    for datum in data:
        where = datum.id or "a datum without id"
        for what, missing in (("field", fields - set(datum.fields)), ("scalar", scalars - set(datum.scalars))):
            if missing:
                raise DataError(
                    where,
                    f"it lacks the {what} {min(missing)!r}, which other data of the step have",
                    action=f"give every datum of a step the same {what}s",
                )
        for name, values in datum.fields.items():
            shape = shapes.setdefault(name, values.shape[1:])
            if values.shape[1:] != shape:
                raise DataError(
                    where,
                    f"field {name!r} has shape {values.shape[1:]} per position, in other data of the step {shape}",
                    action="give it the same shape in every datum of a step",
                )


def _check_ids(where: str, what: str, ids: np.ndarray, vocab_size: int) -> None:
    if ids.size and (int(ids.min()) < 0 or int(ids.max()) >= vocab_size):
        bad = int(ids.min()) if int(ids.min()) < 0 else int(ids.max())
        raise DataError(
            where,
            f"{what} id {bad} is outside the model's vocabulary of {vocab_size}",
            action="use the tokenizer that belongs to the model",
        )


def check_gradients(data: Sequence[Datum], grads: Sequence[NDArray[np.floating[Any]]]) -> None:
    """Refuse gradients that do not belong to the data: dL/dlogprob, one array per datum, shaped as its targets.

    Raises:
        EngineError: another number of them, another shape, or a number that is not finite; names the datum.
    """
    if len(grads) != len(data):
        raise EngineError(f"backward: {len(grads)} gradients for {len(data)} data", action="give one array per datum")
    for datum, gradient in zip(data, grads, strict=True):
        if np.shape(gradient) != datum.targets.shape:
            raise EngineError(
                f"backward: the gradient of {datum.id!r} has shape {np.shape(gradient)}, its targets "
                f"{datum.targets.shape}",
                action="give dL/dlogprob for every target",
            )
        if not np.isfinite(gradient).all():
            raise EngineError(f"backward: the gradient of {datum.id!r} is not finite", action="look at this row")
