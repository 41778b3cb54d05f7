"""The data of a recipe: rows, examples and tokens of each split."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from finetooth_hooks.data.examples import Rendered
from finetooth_hooks.data.preparation import Limit, Preparation, PreparedAs, Rendering
from finetooth_hooks.errors import DataError, RecipeError
from finetooth_hooks.plan import Pick
from finetooth_hooks.protocols import Examples
from finetooth_rows.choices.selection import Selection
from finetooth_rows.lazy_examples import examples_of
from finetooth_rows.picked import PickedSource
from finetooth_rows.reading import SplitRows
from finetooth_rows.splits import prepare
from finetooth_rows.storage.cache import DataCache
from finetooth_rows.storage.pins import check_snapshot, show_files
from finetooth_rows.streaming import stream
from finetooth_rows.work import read_all

from finetooth_core.data.formats import AUTO, formats_of
from finetooth_core.data.run_parts import RunParts
from finetooth_core.data.selection import choice_of, source_choice
from finetooth_core.settings.claims import claimed

FEW_HELD_OUT = 20
"""Held-out rows below which a note says that a score is mostly chance: of 20 rows, one is 5 %."""


class Dataset:
    """Rows, examples and tokens of each split, made at their first use and then kept.

    Args:
        parts: for making them.

    Attributes:
        prepared_as: how rows of a split first became tokens.
        not_kept: why tokens of a split are not cached, regardless of the recipe.
    """

    def __init__(self, parts: RunParts) -> None:
        self._parts = parts
        self._examples: dict[str, Examples] = {}
        self._rows: dict[str, SplitRows] = {}
        self.prepared_as: dict[str, PreparedAs] = {}
        self.not_kept: dict[str, str] = {}

    def has(self, split: str) -> bool:
        """Whether the recipe gives data for the split."""
        return getattr(self._parts.section, split) is not None

    def examples(self, split: str, *, first: int | None = None) -> Examples:
        """See `finetooth_hooks.Context.examples`."""
        if split not in self._examples:
            self._examples[split] = self._read(split)
        whole = self._examples[split]
        return whole if first is None else replace(whole, rows=examples_of(self.rows(split).first(first)))

    def _read(self, split: str) -> Examples:
        rows = self.rows(split)
        self._check_files(rows)
        formats, names = (
            ", ".join(dict.fromkeys(part.registered.full_name for part in picked))
            for picked in (rows.formats, rows.sources)
        )
        examples = examples_of(rows)
        if split == "eval" and isinstance(examples, tuple) and len(examples) < FEW_HELD_OUT:
            amount = f"data.eval has {len(examples)} {'row' if len(examples) == 1 else 'rows'}"
            more = "raise data.eval.fraction, or give more rows" if rows.held_out else "give more rows"
            self._parts.log.note(f"{amount}: a score on so few is mostly chance ({more})", topic="data.eval.rows")
        return Examples(split, examples, formats, names)

    def prepare(
        self, split: str, rendering: Rendering, limit: Limit | None, *, first: int | None = None
    ) -> Preparation:
        """See `finetooth_hooks.Context.prepare`."""
        self.prepared_as.setdefault(split, PreparedAs(rendering, limit, first))
        examples = self.examples(split).rows
        preparation, not_kept = prepare(self._parts, examples, self.rows(split), rendering, limit, first)
        if not_kept:
            self.not_kept[split] = not_kept
        return preparation

    def stream(self, split: str, rendering: Rendering, *, skip: int = 0) -> Iterator[tuple[str, Rendered | DataError]]:
        """See `finetooth_hooks.Context.stream`."""
        self.prepared_as.setdefault(split, PreparedAs(rendering, None, streamed=True))
        self.not_kept[split] = "its rows are read and tokenised while training"
        self._check_files(self.rows(split), if_pinned=True)
        return stream(self._parts.context, self.rows(split), rendering, skip)

    def rows(self, split: str, *, formats: Sequence[str] = ()) -> SplitRows:
        """The rows of a split, not yet read but for the first one of each source, which shows its format.

        Args:
            formats: full names of the formats, one for each source, if they are known already.
        """
        if split not in self._rows:
            held_out = split == "eval" and self._parts.section.held_out is not None
            self._rows[split] = self._held_out(formats) if held_out else self._own_rows(split, formats)
        return self._rows[split]

    def _own_rows(self, split: str, formats: Sequence[str]) -> SplitRows:
        parts, sources = self._parts, self.sources(split)
        try:
            picked = formats_of(parts.builder, parts.section.format, parts.recipe.method, sources, formats)
        except DataError:
            read_all(sources)
            raise
        choice = choice_of(parts.section, split, sources)
        remembers = parts.section.cache != "off"
        selection = None if choice.takes_all else Selection(parts.log, choice, sources, picked, remembers=remembers)
        return SplitRows(split, sources, picked, selection)

    def _held_out(self, formats: Sequence[str]) -> SplitRows:
        """Held-out rows that are a part of the training rows."""
        if self._parts.section.train is None:
            raise RecipeError("data.eval", "the recipe has no training rows to take from", action="set data.train")
        whole = self.rows("train", formats=formats)
        return SplitRows("eval", whole.sources, whole.formats, whole.selection, held_out=True)

    def _check_files(self, rows: SplitRows, *, if_pinned: bool = False) -> None:
        """Record the files' hashes in the plan, and compare them with the recipe's pins.

        Args:
            if_pinned: do nothing without pins.
        """
        log, snapshot = self._parts.log, self._parts.section.snapshot
        pinned = snapshot is not None or any(picked.pin is not None for picked in rows.sources)
        if rows.held_out or (if_pinned and not pinned):
            return
        hashes = DataCache().hashes
        show_files(log, rows.sources, hashes)
        if "data.snapshot" not in log.made and snapshot is not None:
            splits = [split for split in ("train", "eval") if self.has(split)]
            several = [self.rows(split) for split in splits]
            sources = [picked for split_rows in several if not split_rows.held_out for picked in split_rows.sources]
            check_snapshot(log, snapshot, sources, hashes)

    def sources(self, split: str) -> list[PickedSource]:
        """The sources of a split, in their order."""
        setting = f"data.{split}"
        picks = getattr(self._parts.section, split)
        if picks is None:
            raise RecipeError(setting, "no data are given", action=f"set {setting} to a file, a hub id or a source")
        items = [(setting, picks)]
        if isinstance(picks, list):
            items = [(f"{setting}.{index}", item) for index, item in enumerate(picks)]
        return [source for place, item in items for source in self._stood_for(self._source(item, place))]

    def _stood_for(self, listing: PickedSource) -> list[PickedSource]:
        """The sources listed by a source, or itself. The recipe's selection of rows applies to each of them; the
        recipe's format comes before theirs."""
        setting, items = listing.setting, listing.source.stands_for()
        if items is None:
            return [listing]
        if listing.pin is not None and len(items) > 1:
            raise RecipeError(
                f"{setting}.sha256", f"it stands for {len(items)} sources", action="list them, each with its own sha256"
            )
        reason = f"{listing.registered.full_name} says so"
        own = self._parts.section.format == AUTO and listing.format is None
        members = []
        for index, item in enumerate(items):
            member = self._source(item, f"{setting}.{index}" if len(items) > 1 else setting, reason)
            choice = member.choice if listing.choice is None else listing.choice.within(member.choice)
            format_, why = (member.format, reason) if own else (listing.format, listing.format_said)
            members.append(replace(member, choice=choice, pin=listing.pin, format=format_, format_said=why))
        return members

    def _source(self, item: Any, setting: str, said: str = "the recipe says so") -> PickedSource:
        pick: Pick
        recipe, builder = self._parts.recipe, self._parts.builder
        item, choice, own = source_choice(item, setting, self._parts.section)
        if isinstance(item, Mapping):
            pick, registered = item, builder.entry("source", item, setting=setting)
            builder.log.decide(setting, registered.full_name, said)
        elif any(item in (r.entry.name, r.full_name) for r in builder.catalog.all("source")):
            pick, registered = item, builder.entry("source", item, setting=setting)
        else:
            registered, claim = claimed(recipe, builder.catalog, "source", setting, item)
            builder.log.decide(setting, registered.full_name, f"{item}: {claim.reason}")
            pick = {"name": registered.full_name, "path": item}
        built = builder.built(registered, pick, setting)
        return PickedSource(setting, registered, built.plain_options, built.part, choice, own.sha256, own.format)
