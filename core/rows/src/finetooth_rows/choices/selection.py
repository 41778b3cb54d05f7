"""The chosen rows of some sources, computed once and remembered."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Sequence
from contextlib import suppress
from functools import cached_property
from hashlib import sha256
from pathlib import Path

import numpy as np
from finetooth_toolbox.decisions import Decisions
from finetooth_toolbox.files.cache_folder import write_whole
from finetooth_toolbox.files.file_hashes import FileHashes

from finetooth_rows.choices.choice import Choice, Chosen
from finetooth_rows.choices.choosing import choose
from finetooth_rows.picked import PickedFormat, PickedSource
from finetooth_rows.storage.cache import CHOICES, DataCache
from finetooth_rows.storage.key import OWN_PACKAGES, NoDataKey, codes, named_sources, option_files, versions
from finetooth_rows.tally import Tally

REMEMBERED_FROM = 2_000_000
"""Smallest size of source files, in bytes, for a choice to be stored: smaller ones are read as quickly."""


class Selection:
    """The chosen rows of some sources, computed at the first access.

    Args:
        log: receives the notes and decisions.
        choice: the recipe's choice.
        sources, formats: read the rows, a format for each source.
        remembers: whether the choice may be stored on disk.
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
        """Returns the choices for the rows, and logs each choice with its reason.

        Raises:
            DataError, RecipeError: see `choose`.
        """
        with self._log.unheard():  # the final reading reports the format's notes
            chosen = self._remembered()
        for setting, rows, why in chosen.said:
            self._log.decide(setting, rows, why)
        return chosen

    def _remembered(self) -> Chosen:
        def choose_now() -> Chosen:
            return choose(self.choice, self._sources, self._formats)

        if not self._remembers or _are_small(self._sources):
            return choose_now()
        cache = DataCache()
        hashes = cache.hashes
        try:
            path = cache.root / CHOICES / f"{self._key(hashes)}.npz"
        except NoDataKey:
            return choose_now()
        chosen = _read(path)
        if chosen is None:
            chosen = choose_now()
            hashes.check_unchanged()
            with suppress(OSError):  # it is computed again next time
                write_whole(path, _packed(chosen))
        return chosen

    def _key(self, hashes: FileHashes) -> str:
        parts = [picked.registered for picked in (*self._sources, *self._formats)]
        packages = {*OWN_PACKAGES, *(part.entry.build.partition(":")[0].partition(".")[0] for part in parts)}
        near = ["datasketch"] if self.choice.deduplicate == "near" else []
        relied_versions = versions([*(part.distribution for part in parts), *near])
        options = [picked.options for picked in self._formats]
        content = [
            named_sources(self._sources, hashes)[0],
            option_files(options, hashes),
            [[picked.registered.full_name, picked.options] for picked in self._formats],
            self.choice.as_json(),
            codes(packages, relied_versions),
            relied_versions,
        ]
        text = json.dumps(content, sort_keys=True, default=str)
        return sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _are_small(sources: Sequence[PickedSource]) -> bool:
    """Whether all rows are in files that are quickly read."""
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
    """The stored result of `_packed`; None if it is missing or damaged."""
    try:
        with np.load(path) as content:  # a zip archive, which has checksums; nothing in it is code
            facts = json.loads(content["facts"].tobytes())
            arrays = [
                tuple(content[f"{name}{index}"] for index in range(facts["sources"]))
                for name in ("sizes", "taken", "held")
            ]
        path.touch()
        remarks = tuple((setting, rows, why) for setting, rows, why in facts["said"])
        return Chosen(arrays[0], arrays[1], arrays[2], Tally.from_json(facts["dropped"]), remarks)
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile):
        return None
