"""Which format reads the rows of each source: the one the recipe names, or the first that knows the source's first
row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from finetooth_hooks.examples import Row
from finetooth_rows.medium_files import unread_media
from finetooth_rows.picked import PickedFormat, PickedSource
from finetooth_rows.work import first_row

from finetooth_core.claims import unread
from finetooth_core.part_builder import Builder

AUTO = "auto"
SETTING = "data.format"


def formats_of(
    builder: Builder, general: Any, sources: Sequence[PickedSource], known: Sequence[str] = ()
) -> tuple[PickedFormat, ...]:
    """The format of each source, in their order; said in the plan with the reason.

    Args:
        general: the pick of `data.format`.
        known: full names of the formats that would be found, where somebody has found them already.

    Raises:
        DataError: a source is missing or has no rows, or no format knows its first row.
        RecipeError: the options of one are wrong.
    """
    built: dict[str, PickedFormat] = {}
    return tuple(
        _format_of(builder, general, picked, known[index] if known else "", built)
        for index, picked in enumerate(sources)
    )


def _format_of(
    builder: Builder, general: Any, picked: PickedSource, known: str, built: dict[str, PickedFormat]
) -> PickedFormat:
    own = picked.format
    said_at = f"{picked.setting}.format"
    if own not in (None, AUTO):
        found = _built(builder, own, said_at)
        builder.log.decide(said_at, found.registered.full_name, picked.format_said)
        return found
    if own is None and general != AUTO:
        if SETTING not in built:
            built[SETTING] = _built(builder, general, SETTING)
            builder.log.decide(SETTING, built[SETTING].registered.full_name, "the recipe says so")
        return built[SETTING]
    if known:
        return _built(builder, known, SETTING)
    first = first_row([picked])
    found, reason = _detected(builder, first, built)
    alone = picked.setting == "data.train"  # one source: the format of the data
    builder.log.decide(SETTING if alone else said_at, found.registered.full_name, f"row {first.id} {reason}")
    return found


def _built(builder: Builder, pick: Any, setting: str) -> PickedFormat:
    built = builder.build("format", pick, setting=setting)
    return PickedFormat(setting, built.registered, built.plain_options, built.part)


def _detected(builder: Builder, first: Row, built: dict[str, PickedFormat]) -> tuple[PickedFormat, str]:
    formats = sorted(builder.catalog.all("format"), key=lambda r: (getattr(r.entry, "rank", 100), r.full_name))
    for registered in formats:
        name = registered.full_name
        if name not in built:
            built[name] = _built(builder, name, SETTING)
        reason = built[name].format.detect(first.values)
        if reason is not None:
            if column := unread_media(first, built[name].format):
                short = registered.entry.name
                builder.log.note(
                    f"row {first.id} has {column!r}, which format {short} does not read: the text alone trains"
                )
            return built[name], reason
    raise unread(formats, first, lambda registered, pick: _built(builder, pick, SETTING).format)
