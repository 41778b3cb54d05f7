"""From the recipe to a choice of rows, and from the choice to the rows, made once and remembered."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from finetooth_hooks.errors import RecipeError
from finetooth_rows.cache import CHOICES, DataCache
from finetooth_rows.choice import Choice, Chosen, SourceChoice
from finetooth_rows.choosing import choose
from finetooth_rows.key import OWN_PACKAGES, Unknowable, code_hash, named_sources, versions
from finetooth_rows.picked import PickedFormat, PickedSource
from finetooth_rows.slices import Slice, split_reference
from finetooth_rows.tally import Tally
from finetooth_toolbox.decisions import Decisions
from finetooth_toolbox.files.cache_folder import write_whole

from finetooth_core.problems import plain_data, validate
from finetooth_core.recipe_data import DataSection, HeldOut, SourceRows

REMEMBERED_FROM = 2_000_000
"""Bytes of source files from which on a choice is remembered: less is gone through as quickly."""


class Selection:
    """The rows of some sources that are taken, found when they are first asked for.

    Args:
        log: takes what there is to say.
        choice: what the recipe asks.
        sources, formats: read the rows, a format for each source.
        remembers: whether the choice may be kept on disk.
    """

    def __init__(
        self,
        log: Decisions,
        choice: Choice,
        sources: Sequence[PickedSource],
        formats: Sequence[PickedFormat],
        *,
        remembers: bool = True,
    ) -> None:
        self.choice = choice
        self._log, self._remembers = log, remembers
        self._sources, self._formats = tuple(sources), tuple(formats)

    @cached_property
    def chosen(self) -> Chosen:
        """
        Raises:
            DataError, RecipeError: see `choose`.
        """
        with self._log.unheard():  # what a format says of rows is heard when they are read for good
            chosen = self._remembered()
        for setting, rows, why in chosen.said:
            self._log.decide(setting, rows, why)
        return chosen

    def _remembered(self) -> Chosen:
        def anew() -> Chosen:
            return choose(self.choice, self._sources, self._formats)

        if not self._remembers or _are_small(self._sources):
            return anew()
        cache = DataCache()
        hashes = cache.hashes
        try:
            path = cache.root / CHOICES / f"{self._key(named_sources(self._sources, hashes)[0])}.npz"
        except Unknowable:
            return anew()
        found = _read(path)
        if found is None:
            found = anew()
            hashes.check_unchanged()
            with suppress(OSError):  # it is made again next time
                write_whole(path, _packed(found))
        return found

    def _key(self, sources: list[Any]) -> str:
        parts = [picked.registered for picked in (*self._sources, *self._formats)]
        packages = {*OWN_PACKAGES, *(part.entry.build.partition(":")[0].partition(".")[0] for part in parts)}
        near = ["datasketch"] if self.choice.deduplicate == "near" else []
        content = [
            sources,
            [[picked.registered.full_name, picked.options] for picked in self._formats],
            self.choice.as_json(),
            {name: code_hash(name) for name in sorted(packages)},
            versions([*(part.distribution for part in parts), *near]),
        ]
        text = json.dumps(content, sort_keys=True, default=str)
        return sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def source_choice(item: Any, setting: str, data: DataSection) -> tuple[Any, SourceChoice, SourceRows]:
    """A source as the recipe gives it, without the keys that every source takes; which of its rows are taken; and those
    keys.

    Raises:
        RecipeError: what is wrong with the latter.
    """
    given: dict[str, Any] = {}
    if isinstance(item, Mapping):
        given = {key: item[key] for key in SourceRows.model_fields if key in item}
        item = {key: value for key, value in item.items() if key not in given}
        path, text = split_reference(item["path"]) if isinstance(item.get("path"), str) else ("", "")
        item = {**item, "path": path} if text else item
    else:
        item, text = split_reference(item)
    if text and "slice" in given:
        raise RecipeError(f"{setting}.slice", f"{text} is a slice too", action="give one of them")
    if text:
        given["slice"] = text
    prefix = tuple(setting.split("."))
    rows = validate(SourceRows, plain_data(given, prefix), prefix=prefix, noun="option of a source")
    held_out = setting.partition(".")[2].partition(".")[0] == "eval"
    if held_out and rows.weight != 1:
        raise RecipeError(f"{setting}.weight", "held-out rows are each taken once", action="remove it")
    part = None if rows.slice is None else Slice.parse(rows.slice, f"{setting}.slice")
    if part is not None and part.is_empty:
        raise RecipeError(
            f"{setting}.slice",
            f"{part.text} takes no rows of any source: its end is not behind its beginning",
            action="write the first row and the one behind the last, such as [100:200]",
        )
    most = rows.max_rows if held_out or rows.max_rows is not None else data.max_rows
    return item, SourceChoice(setting, part, most, rows.weight), rows


def choice_of(data: DataSection, split: str, sources: Sequence[PickedSource]) -> Choice:
    """What the recipe asks of the sources of a split.

    Raises:
        RecipeError: it asks for what cannot be.
    """
    choices = tuple(picked.choice or SourceChoice(picked.setting) for picked in sources)
    if split == "eval":
        return Choice(choices)
    held_out = data.held_out
    held = None if held_out is None else validate(HeldOut, held_out, prefix=("data", "eval"))
    mix = data.mix
    if mix is not None and len(sources) == 1 and mix.rows is None:
        raise RecipeError(
            "data.mix", "data.train is one source, so there is nothing to mix", action="remove it, or give a list"
        )
    return Choice(
        choices,
        deduplicate=data.deduplicate,
        near_threshold=data.near_threshold,
        fraction=held.fraction if held else 0.0,
        fraction_seed=held.seed if held else 0,
        temperature=1.0 if mix is None else None if mix.temperature == "even" else float(mix.temperature),
        mix_rows=mix.rows if mix else None,
        mix_seed=mix.seed if mix else 0,
    )


def _are_small(sources: Sequence[PickedSource]) -> bool:
    """Whether all rows lie in files that are quickly gone through."""
    total = 0
    for picked in sources:
        files = picked.files()
        if files is None:
            return False
        total += sum(path.stat().st_size for path in files if path.is_file())
    return total < REMEMBERED_FROM


def _packed(chosen: Chosen) -> bytes:
    facts = {"dropped": chosen.dropped.as_json(), "said": chosen.said, "sources": len(chosen.sizes)}
    arrays = {name: getattr(chosen, name) for name in ("sizes", "taken", "held")}
    named = {f"{name}{index}": array for name, several in arrays.items() for index, array in enumerate(several)}
    file = io.BytesIO()
    np.savez_compressed(file, facts=np.frombuffer(json.dumps(facts).encode(), np.uint8), **named)
    return file.getvalue()


def _read(path: Path) -> Chosen | None:
    """What `_packed` gave; None if it is not there or damaged."""
    try:
        with np.load(path) as content:  # a zip archive, which has checksums; nothing in it is code
            facts = json.loads(content["facts"].tobytes())
            arrays = [
                tuple(content[f"{name}{index}"] for index in range(facts["sources"]))
                for name in ("sizes", "taken", "held")
            ]
        path.touch()
        said = tuple((setting, rows, why) for setting, rows, why in facts["said"])
        return Chosen(arrays[0], arrays[1], arrays[2], Tally.from_json(facts["dropped"]), said)
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile):
        return None
