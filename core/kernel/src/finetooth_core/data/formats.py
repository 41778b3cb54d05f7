"""Chooses the format of each source: the recipe's, or the one that accepts most of its first rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from finetooth_hooks.data.examples import Row
from finetooth_hooks.entries import Method
from finetooth_rows.medium_files import unread_media
from finetooth_rows.picked import PickedFormat, PickedSource
from finetooth_rows.work import first_rows

from finetooth_core.plugins.catalog import Registered
from finetooth_core.plugins.part_builder import Builder, is_auto
from finetooth_core.settings.claims import unread

BuiltFormats = dict[str, PickedFormat]
AUTO = "auto"
SETTING = "data.format"
LOOKED_AT = 20
"""First rows of a source that decide its format, so that a single broken row does not."""


def formats_of(
    builder: Builder, general: Any, method: Any, sources: Sequence[PickedSource], known: Sequence[str] = ()
) -> tuple[PickedFormat, ...]:
    """The format of each source, in order; recorded in the plan with the reason.

    Args:
        general: the pick of `data.format`.
        method: the pick of `method`, whose entry may prefer formats.
        known: full names of formats that were found before.

    Raises:
        DataError: a source is missing or has no rows, or no format knows its first rows.
        RecipeError: the options of one are wrong.
    """
    built: BuiltFormats = {}
    formats = _in_order(builder, method)
    return tuple(
        _format_of(builder, general, picked, known[index] if known else "", built, formats)
        for index, picked in enumerate(sources)
    )


def _format_of(
    builder: Builder, general: Any, picked: PickedSource, known: str, built: BuiltFormats, formats: Sequence[Registered]
) -> PickedFormat:
    own = picked.format
    said_at = f"{picked.setting}.format"
    if own not in (None, AUTO):
        chosen = _built(builder, own, said_at)
        builder.log.decide(said_at, chosen.registered.full_name, picked.format_said)
        return chosen
    if own is None and general != AUTO:
        if SETTING not in built:
            built[SETTING] = _built(builder, general, SETTING)
            builder.log.decide(SETTING, built[SETTING].registered.full_name, "the recipe says so")
        return built[SETTING]
    if known:
        return _built(builder, known, SETTING)
    first, chosen, reason = _detected(builder, first_rows(picked, LOOKED_AT), built, formats)
    alone = picked.setting == "data.train"  # one source: the format of the data
    builder.log.decide(SETTING if alone else said_at, chosen.registered.full_name, f"row {first.id} {reason}")
    return chosen


def _built(builder: Builder, pick: Any, setting: str) -> PickedFormat:
    built = builder.build("format", pick, setting=setting)
    return PickedFormat(setting, built.registered, built.plain_options, built.part)


def _in_order(builder: Builder, method: Any) -> list[Registered]:
    """All formats, in the order in which they are tried."""
    picked = None if is_auto(method) else builder.entry("method", method, setting="method").entry
    first = picked.formats if isinstance(picked, Method) else ()
    known = builder.catalog.all("format")
    return sorted(known, key=lambda r: (r.entry.name not in first, getattr(r.entry, "rank", 100), r.full_name))


def _detected(
    builder: Builder, rows: Sequence[Row], built: BuiltFormats, formats: Sequence[Registered]
) -> tuple[Row, PickedFormat, str]:
    """The format that accepts most of the rows, the first of these rows, and the reason."""
    known = [(row, *knows) for row in rows if (knows := _knows(builder, formats, row, built)) is not None]
    if not known:
        raise unread(formats, rows[0], lambda registered, pick: _built(builder, pick, SETTING).format)
    counts = Counter(name for _, name, _ in known)  # of equal ones the first that was met
    (best, count), *_ = counts.most_common(1)
    first, name, reason = next(guess for guess in known if guess[1] == best)
    registered = built[name].registered
    if first is not rows[0]:
        like = f"looks like {known[0][1].partition(':')[2]}" if known[0][0] is rows[0] else "fits no known format"
        builder.log.note(
            f"row {rows[0].id} {like}, and {count} of the first {len(rows)} like {registered.entry.name}: "
            f"all are read as {registered.entry.name}"
        )
    if column := unread_media(first, built[name].format):
        short = registered.entry.name
        builder.log.note(f"row {first.id} has {column!r}, which format {short} does not read: only the text trains")
    return first, built[name], reason


def _knows(builder: Builder, formats: Sequence[Registered], row: Row, built: BuiltFormats) -> tuple[str, str] | None:
    """The first format that accepts a row, and the reason."""
    for registered in formats:
        name = registered.full_name
        if name not in built:
            built[name] = _built(builder, name, SETTING)
        reason = built[name].format.detect(row.values)
        if reason is not None:
            return name, reason
    return None
