"""Turns examples into data: renders them, limits their length, and counts every row that is left out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import is_dataclass, replace
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np
from finetooth_hooks.data.examples import CALLED, Conversation, Example, Pair, Rendered, Side, media_of
from finetooth_hooks.data.preparation import Limit, Preparation, Render, Rendering
from finetooth_hooks.errors import DataError, RecipeError
from finetooth_hooks.plan import TrainSettings
from finetooth_hooks.protocols import Examples
from finetooth_toolbox.messages import media as row_media
from finetooth_toolbox.messages.markup import why_untrained

from finetooth_rows.asking import Asking
from finetooth_rows.cutting import TURNS, Range, answers_of, cut, cut_by_turns, cuts_medium
from finetooth_rows.groups import MEDIUM_CUT, usable_group
from finetooth_rows.noticing import RowInspector
from finetooth_rows.storage.token_rows import Int32Array, TokenPortion, TokenRows, pack_about
from finetooth_rows.tally import IN_A_PIECE, LENGTH_SETTINGS, NOTHING_TRAINED, OCTAVE, TOO_LONG, Tally
from finetooth_rows.trained_roles import count_roles

if TYPE_CHECKING:
    from finetooth_hooks.context import Context

COMPARED = 1024
"""Number of tokens at the start of rows that are compared."""


def load_rendering(rendering: Rendering, context: Context) -> Render:
    """Build a rendering. If a library cannot traverse or encode a row, its exception becomes a refusal of the row."""
    module, _, function = rendering.build.partition(":")
    built: Render = getattr(import_module(module), function)(rendering.options, context)
    return partial(_watched, built, context, RowInspector(context), Asking(context))


def _watched(render: Render, context: Context, noticing: RowInspector, asking: Asking, example: Example) -> Rendered:
    """The tokens of a row, with notices about it."""
    if media_of(example):
        _check_model(context, example)
    notices = noticing.before(example)
    rendered = _refusing(render, example)
    if isinstance(example, Conversation) and any(rendered.weights):
        rendered = asking.mended(example, rendered)
        notices = (*notices, *asking.notices(example, rendered))
    notices = (*rendered.notices, *notices, *noticing.after(example, rendered))
    train = context.train
    if train.excess_length == TURNS and len(rendered.tokens) > train.max_length and isinstance(example, Conversation):
        rendered = replace(rendered, answers=answers_of(example, rendered, partial(_plainly, context, asking)))
    return replace(rendered, notices=notices) if notices else rendered


def _plainly(context: Context, asking: Asking, example: Conversation) -> Rendered:
    """Tokens of a conversation in which every answer trains."""
    return asking.mended(example, context.renderer.render(example, train_on="assistant"))


def _refusing(render: Render, example: Example) -> Rendered:
    try:
        return render(example)
    except RecursionError as error:
        raise DataError("", "objects are nested too deep to be written", action="flatten or remove the row") from error
    except (UnicodeEncodeError, TypeError) as error:  # tokenizers raise these for such a text
        half = _half_character(example)
        if not half:
            raise
        raise DataError(
            "", f"a text holds half a character (U+{ord(half):04X})", action="repair or remove the row"
        ) from error


def _half_character(example: Example) -> str:
    """The first half of a surrogate pair in any text of an example: JSON can express it, and no tokenizer can read
    it."""
    rest: list[Any] = [example]
    while rest:
        value = rest.pop()
        if isinstance(value, str):
            half = next((character for character in value if "\ud800" <= character <= "\udfff"), "")
            if half:
                return half
        elif isinstance(value, Mapping):
            rest += [*value.keys(), *value.values()]
        elif isinstance(value, list | tuple):
            rest += value
        elif is_dataclass(value):
            rest += vars(value).values()
    return ""


def prepare(examples: Examples, render: Render, train: TrainSettings) -> Preparation:
    """Render examples to data in this process. Unusable rows are counted by reason.

    `Context.prepare` returns the same for methods, for as many rows as a disk holds.

    Args:
        render: tokens and weights of one example.
        train: has `max_length` and `excess_length`.

    Raises:
        DataError: rows are longer than `max_length` and `excess_length` is `raise`; a row has no trainable answer; or
            no row is left.
    """
    return prepare_examples(examples, render, Limit.of(train))


def prepare_examples(examples: Examples, render: Render, limit: Limit | None) -> Preparation:
    """As `prepare`; without a limit every row stays whole, even if it trains nothing."""
    portion, tally = render_rows(examples.rows, render, limit)
    return finish(TokenRows([portion]), tally, examples.split, limit)


def first_examples(examples: Examples, count: int | None) -> Examples:
    """The first few; all of them if the count is None."""
    return examples if count is None else replace(examples, rows=examples.rows[:count])


def finish(rows: TokenRows, tally: Tally, split: str, limit: Limit | None) -> Preparation:
    """Returns the prepared rows of a split with their report.

    Raises:
        DataError: see `prepare`.
    """
    tally.check()
    if limit is not None and not tally.used:
        raise tally.nothing_left(split, limit.max_length)
    return Preparation(rows, tally.report(split), dict(tally.remarks))


def render_rows(
    items: Iterable[tuple[str, Example]], render: Render, limit: Limit | None
) -> tuple[TokenPortion, Tally]:
    """Render some rows. A wrong row is counted and raises no error. Rows that are split (`excess_length: split`) become
    `ROW#1`, `ROW#2`, ...; together the pieces train the same targets as the row.

    Args:
        items: row ids and examples; read to the end in any case.
        limit: None keeps every row whole.
    """
    tally = Tally()
    ids: list[str] = []
    lengths: list[int] = []
    tokens: list[int] = []
    weights: list[float] = []
    media: list[bytes] = []
    about: list[bytes] = []

    def take(name: str, rendered: Rendered, group: str | None = None) -> None:
        ids.append(name)
        lengths.append(len(rendered.tokens))
        tokens.extend(rendered.tokens)
        weights.extend(rendered.weights)
        media.append(row_media.pack(rendered.media))
        about.append(pack_about(rendered.scalars, group))

    for id_, example in items:
        tally.rows += 1
        tally.examples += 1
        try:
            rendered = render(example)
            _check_media(example, rendered)
        except DataError as error:
            tally.unusable.add(DataError(id_, error.problem, action=error.action))
            continue
        for remark in rendered.remarks:
            tally.remarks[remark] = tally.remarks.get(remark, 0) + 1
        for notice in rendered.notices:
            tally.notice(notice, id_)
        if rendered.left_out:
            tally.drop(rendered.left_out, id_)
            continue
        if rendered.others:
            for part in usable_group(id_, rendered, limit, tally):
                take(f"{id_}#{part.part}", part, id_)
            continue
        whole = [(id_, rendered)] if rendered.tokens else []
        pieces = whole if limit is None else _apply_limit(id_, example, rendered, limit, tally)
        if pieces and isinstance(example, Conversation):
            count_roles(example, [part for _, part in pieces], tally.trained_by_role)
        for name, part in pieces:
            take(name, part)
    portion = TokenPortion.pack(ids, lengths, tokens, weights, media, about)
    _count(portion, np.asarray(weights, np.float32), tally)
    return portion, tally


def _check_media(example: Example, rendered: Rendered) -> None:
    """
    Raises:
        DataError: the renderer has left out a medium, or the last medium ends the row.
    """
    if rendered.left_out:
        return
    parts = (rendered, *rendered.others)
    expected = len(media_of(example))
    shown = sum(len(part.media) for part in parts)
    if isinstance(example, Pair) and rendered.others:  # both answers follow the media of the prompt
        shown -= media_in(example.prompt)
    if expected != shown:
        raise DataError(
            "",
            f"it has {_counted(example)}, which the renderer cannot write",
            action="set data.renderer to one that takes them, such as jinja with the model's own chat template",
        )
    if any(part.media and part.media[-1].stop >= len(part.tokens) for part in parts):
        last = next(part.media[-1] for part in parts if part.media and part.media[-1].stop >= len(part.tokens))
        problem = f"{CALLED[last.medium.kind]} is the last it has, and nothing is predicted from it"
        raise DataError("", problem, action="remove the row")


def _check_model(context: Context, example: Example) -> None:
    """
    Raises:
        DataError: the model reads only text, with any renderer.
    """
    try:
        _ = context.processor.kinds
    except RecipeError as error:
        if error.setting != "model":
            raise
        why = error.problem.removeprefix("model: ")
        action = "set model to one that takes them, or remove the rows"
        raise DataError("", f"it has {_counted(example)}, and {why}", action=action) from error


def _counted(example: Example) -> str:
    """`2 images, 1 sound`."""
    kinds = [CALLED[medium.kind].split()[1] for medium in media_of(example)]
    many = {kind: kinds.count(kind) for kind in dict.fromkeys(kinds)}
    return ", ".join(f"{n} {kind}{'s' if n > 1 else ''}" for kind, n in many.items())


def media_in(side: Side) -> int:
    """Number of pictures, sounds and videos of a side."""
    return 0 if isinstance(side, str) else sum(len(message.media) for message in side)


IdsAndTokens = list[tuple[str, Rendered]]
"""Ids and tokens of the data from a row."""


def _apply_limit(id_: str, example: Example, rendered: Rendered, limit: Limit, tally: Tally) -> IdsAndTokens:
    """Ids and tokens of the data from a row, empty if the row is left out; counts both."""
    if not any(rendered.weights[1:]):
        if reason := why_untrained(example):
            tally.drop(f"{NOTHING_TRAINED}: {reason}", id_)
            return []
        problem = f"{NOTHING_TRAINED}: no assistant message or completion with text"
        action = "remove the row, or choose what trains with method.train_on"
        tally.unusable.add(DataError(id_, problem, action=action))
        return []
    positions = len(rendered.tokens) - 1  # a datum of N positions has N + 1 tokens
    if positions < limit.max_length + (limit.excess_length != TURNS):
        return [(id_, rendered)]
    if limit.excess_length == "raise":
        problem = f"{positions} tokens, more than train.max_length={limit.max_length}"
        action = "raise train.max_length, or set train.excess_length to drop, truncate, truncate_turns or split"
        tally.refused.add(DataError(id_, problem, action=action))
        return []
    if limit.excess_length == "drop":
        tally.drop(TOO_LONG, id_, LENGTH_SETTINGS)
        tally.shortest = min(tally.shortest or positions, positions)
        return []
    pieces = _pieces(id_, rendered, limit)
    if any(cuts_medium(rendered, ranges) for _, ranges in pieces):
        tally.drop(MEDIUM_CUT, id_, LENGTH_SETTINGS)
        return []
    parts = [(name, cut(rendered, ranges)) for name, ranges in pieces]
    splits = limit.excess_length == "split"
    for name, part in parts:
        if not any(part.weights[1:]):
            tally.drop(IN_A_PIECE if splits else f"{NOTHING_TRAINED} after truncation", name, LENGTH_SETTINGS)
    parts = [(name, part) for name, part in parts if any(part.weights[1:])]
    tally.split += splits
    tally.truncated += bool(parts) and not splits
    return parts


def _pieces(id_: str, rendered: Rendered, limit: Limit) -> list[tuple[str, Sequence[Range]]]:
    """The remaining ranges of tokens of a row that is too long, by the id of their datum.

    A row that is split becomes `id_#1`, `id_#2`, ...: each begins with the last predicted token of the previous piece,
    so that every token is predicted once. A piece without trained tokens is left out and counted, and the other pieces
    keep their numbers.
    """
    size, longest = len(rendered.tokens), limit.max_length
    if limit.excess_length == "split":
        starts = range(0, size - 1, longest)
        return [(f"{id_}#{i}", [(at, min(at + longest + 1, size))]) for i, at in enumerate(starts, start=1)]
    return [(id_, cut_by_turns(rendered, longest) if limit.excess_length == TURNS else [(0, longest + 1)])]


def _count(portion: TokenPortion, weights: np.ndarray[Any, np.dtype[np.float32]], tally: Tally) -> None:
    """Add the sums over the rows of a portion to the tally."""
    lengths = np.diff(portion.starts)
    tally.used = len(portion)
    if not tally.used:
        return
    tally.tokens = int(lengths.sum()) - len(lengths)
    tally.squares = int(((lengths - 1).astype(np.int64) ** 2).sum())
    tally.trained_tokens = int(np.count_nonzero(weights)) - int(np.count_nonzero(weights[portion.starts[:-1]]))
    steps = np.rint(OCTAVE * np.log2(np.maximum(lengths - 1, 1))).astype(np.int64)
    tally.by_length = np.bincount(steps).tolist()
    tally.beginning = _beginning(portion).tolist()
    longest = int(np.argmax(lengths))
    tally.longest, tally.longest_id = int(lengths[longest]) - 1, portion.ids[longest]


def _beginning(portion: TokenPortion) -> Int32Array:
    """The common beginning of all rows of a portion, in tokens that are positions; empty if rows have media, since all
    media of a kind have the same token."""
    lengths = np.diff(portion.starts)
    width = 0 if any(portion.media) else min(COMPARED, int(lengths.min()) - 1)
    common = portion.tokens[portion.starts[0] :][:width]
    for start in portion.starts[1:-1]:
        differs = np.flatnonzero(portion.tokens[start : start + len(common)] != common)
        common = common[: differs[0]] if differs.size else common
        if not len(common):
            break
    return common
