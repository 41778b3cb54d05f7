"""Data of a split, from the cache or made by all cores in one pass over the rows.

Few rows are rendered in this process and held in memory. Many rows are rendered portion by portion and written to a
memory-mapped file, so that memory does not grow with them. The results come in the order of the rows from any process:
report, dropped rows, errors and notes are the same.
"""

from __future__ import annotations

import errno
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from finetooth_hooks.data.examples import Example
from finetooth_hooks.data.preparation import Limit, Preparation, Rendering
from finetooth_hooks.errors import DataError, UserError
from finetooth_toolbox.decisions import Note
from finetooth_toolbox.files.file_hashes import FileHashes
from finetooth_toolbox.messages import media as row_media

from finetooth_rows import rendering_work
from finetooth_rows.lazy_examples import SMALL_ROWS, examples_of
from finetooth_rows.parts import DataParts
from finetooth_rows.preparing import finish, load_rendering, render_rows
from finetooth_rows.progress import PreparationProgress
from finetooth_rows.read_so_far import Reading
from finetooth_rows.reading import SplitRows
from finetooth_rows.rendering_work import Rendered
from finetooth_rows.storage.cache import ROWS, CacheEntry, DataCache
from finetooth_rows.storage.key import DataKey, NoDataKey, data_key, media_key, with_media
from finetooth_rows.storage.token_rows import TokenPortion, TokenRows
from finetooth_rows.tally import Tally
from finetooth_rows.work import broken_rows_first
from finetooth_rows.workers import Workers, usable_cores

STARTUP = 3.0
"""Approximate time to start workers, in seconds. `auto` starts them after this time of work, so that it never takes
more than twice the time of the better choice."""


GIGABYTE = 10**9


@dataclass
class PassResult:
    """The result of one pass over the rows.

    Attributes:
        workers: number of processes.
        alone: the reason for only one process.
        media: files of the rows' images and sounds, with the SHA-256 of their content.
    """

    tally: Tally = field(default_factory=Tally)
    reading: Reading = field(default_factory=Reading)
    notes: dict[str, str] = field(default_factory=dict)
    workers: int = 0
    alone: str = ""
    media: dict[str, str] = field(default_factory=dict)

    @property
    def failed(self) -> bool:
        """An error makes the rows unusable."""
        return self.reading.failed


def prepare(
    parts: DataParts,
    whole: Sequence[tuple[str, Example]],
    all_rows: SplitRows,
    rendering: Rendering,
    limit: Limit | None,
    first: int | None = None,
) -> tuple[Preparation, str]:
    """See `finetooth_hooks.Context.prepare`.

    Args:
        whole: all examples of the split; a tuple if they are few.
        all_rows: the rows of the examples.

    Returns:
        the preparation, and the reason for not caching the tokens if it is not the recipe's wish.

    Raises:
        DataError: rows are broken, or there are fewer than `data.examples`.
    """
    made = _prepared(parts, whole, all_rows, rendering, limit, first)
    if all_rows.split == "train" and first is None:
        _check_count(parts.section.examples, all_rows, made[0].report.rows)
    return made


def _check_count(wanted: int | None, rows: SplitRows, read: int) -> None:
    """
    Raises:
        DataError: the split has fewer rows.
    """
    if wanted is None:
        return
    if rows.selection is not None:
        chosen = rows.selection.chosen
        read = sum(int(((taken + held) > 0).sum()) for taken, held in zip(chosen.taken, chosen.held, strict=True))
    if read != wanted:
        raise DataError(
            "data.examples", f"the recipe says {wanted:,} training rows, and there are {read:,}",
            action="restore the data, or set data.examples to what was found",
        )  # fmt: skip


def _prepared(
    parts: DataParts,
    whole: Sequence[tuple[str, Example]],
    all_rows: SplitRows,
    rendering: Rendering,
    limit: Limit | None,
    first: int | None,
) -> tuple[Preparation, str]:
    split, rows = all_rows.split, all_rows.first(first)
    if isinstance(whole, tuple):
        examples = whole if first is None else examples_of(rows)
        portion, tally = render_rows(examples, load_rendering(rendering, parts.context), limit)
        if rows.read_to_end is not None:
            tally.merge(rows.read_to_end.left)
            _count_unrendered(rows, rows.read_to_end, tally)
        few = f"{tally.rows:,} {'row is' if tally.rows == 1 else 'rows are'} made again in a moment"
        return finish(TokenRows([portion]), tally, split, limit), f"{few}; more than {SMALL_ROWS:,} are kept"
    return _many(parts, rows, rendering, limit), ""


def _many(parts: DataParts, rows: SplitRows, rendering: Rendering, limit: Limit | None) -> Preparation:
    """Prepare more rows than fit in memory."""
    split = rows.split
    if parts.section.cache == "off":
        return _uncached(parts, rows, rendering, limit, "the recipe says so")
    cache = DataCache()
    hashes = cache.hashes
    try:
        key = data_key(parts, rows, rendering, limit, hashes)
    except NoDataKey as reason:
        return _uncached(parts, rows, rendering, limit, str(reason))
    entry = cache.find(with_media(key.value, cache.media_files(key.value), hashes))
    if entry is None:
        entry = _fill(parts, rows, rendering, limit, cache, key, hashes)
        origin = "made now and kept"
    else:
        origin = f"from the cache, prepared {datetime.fromtimestamp(entry.made):%Y-%m-%d %H:%M}"
    parts.log.decide(f"data.cache.{split}", key.value[:12], f"{entry.rows:,} rows {origin}")
    for topic, text in entry.notes:
        parts.log.note(text, topic=topic)
    rows.openings = entry.tally.openings
    return finish(entry.data(), entry.tally, split, limit)


def _fill(
    parts: DataParts,
    rows: SplitRows,
    rendering: Rendering,
    limit: Limit | None,
    cache: DataCache,
    key: DataKey,
    hashes: FileHashes,
) -> CacheEntry:
    """Make an entry of the cache."""
    try:
        with cache.writing(key.value) as folder:
            made, portions = _write(parts, rows, rendering, limit, folder)
            hashes.check_unchanged()
            names = [picked.options.get("path") or picked.registered.full_name for picked in rows.sources]
            notes = list(made.notes.items())
            value = key.value
            if made.media:
                cache.keep_media_files(value, list(made.media))
                value = media_key(value, made.media)
            entry = cache.keep(
                value, folder, sources=list(map(str, names)), tally=made.tally, notes=notes, portions=portions
            )
    except OSError as error:
        raise _no_room(cache.root, error) from error
    _bound(parts, cache)
    return entry


def _bound(parts: DataParts, cache: DataCache) -> None:
    """Prune the cache to `data.cache_gb`, with a note."""
    bound = parts.section.cache_gb
    pruned = cache.prune(keep_bytes=int(bound * GIGABYTE))
    if pruned.removed:
        size = sum(entry.bytes for entry in pruned.removed) / GIGABYTE
        parts.log.note(
            f"prepared data of {len(pruned.removed)} earlier "
            f"{'run' if len(pruned.removed) == 1 else 'runs'} removed ({size:.3g} GB, those used longest ago) to keep "
            f"data.cache_gb: {bound:g}; {pruned.bytes / GIGABYTE:.3g} GB are left",
            topic="data.cache_gb",
        )
    elif pruned.bytes > bound * GIGABYTE:
        parts.log.note(
            f"prepared data take {pruned.bytes / GIGABYTE:.3g} GB, more than data.cache_gb: {bound:g}, and all of them "
            "are in use",
            topic="data.cache_gb",
        )


def _uncached(parts: DataParts, rows: SplitRows, rendering: Rendering, limit: Limit | None, reason: str) -> Preparation:
    """Data in a temporary file, deleted when the process ends."""
    from finetooth_rows.storage.arrow_rows import ArrowPortions

    parts.log.decide(f"data.cache.{rows.split}", "off", reason)
    scratch = tempfile.TemporaryDirectory(prefix="finetooth-data-")  # removed with the context, or at the end
    parts.scratch.append(scratch)
    folder = Path(scratch.name)
    try:
        made, portions = _write(parts, rows, rendering, limit, folder)
    except OSError as error:
        raise _no_room(folder, error) from error

    rows.openings = made.tally.openings

    def damaged() -> UserError:
        return UserError(f"{folder}: the prepared data changed while the run used them", action="start it again")

    sizes = [(count, tokens) for count, tokens, _ in portions]
    return finish(TokenRows(ArrowPortions(folder / ROWS, portions, damaged), sizes), made.tally, rows.split, limit)


def _write(
    parts: DataParts, rows: SplitRows, rendering: Rendering, limit: Limit | None, folder: Path
) -> tuple[PassResult, list[tuple[int, int, int]]]:
    """Render every row into a file.

    Raises:
        DataError: the rows have errors.
    """
    from finetooth_rows.storage.arrow_rows import ArrowWriter

    made = PassResult()
    with (
        broken_rows_first(rows.sources, made.reading),
        ArrowWriter(folder / ROWS) as writer,
        PreparationProgress(f"data.{rows.split}", _total(rows)) as progress,
    ):
        for rendered in _rendered(parts, rows, rendering, limit, made):
            made.reading.merge(rendered.reading)
            made.tally.merge(rendered.tally)
            for topic, text in rendered.notes:
                made.notes.setdefault(topic, text)
                parts.log.note(text, topic=topic)
            if not made.failed:
                writer.write(rendered.portion)
                made.media.update(_media_files(rendered.portion))
            progress.advance(sum(rendered.reading.good.values()), rendered.size)
    rows.check(made.reading)
    made.tally.check()
    _count_unrendered(rows, made.reading, made.tally)
    if limit is not None and not made.tally.used:
        raise made.tally.nothing_left(rows.split, limit.max_length)
    reason = made.alone or f"{made.reading.rows:,} rows of data.{rows.split}"
    parts.log.decide(f"data.workers.{rows.split}", made.workers, reason)
    return made, writer.portions


def _count_unrendered(rows: SplitRows, reading: Reading, tally: Tally) -> None:
    """Count the rows that were left out before the final reading, and report unread columns."""
    tally.merge(rows.dropped)
    if unread := rows.unread(reading):
        tally.notes.append(unread)


def _rendered(
    parts: DataParts, rows: SplitRows, rendering: Rendering, limit: Limit | None, made: PassResult
) -> Iterator[Rendered]:
    """All results in order: first from this process, then from workers if there is enough work."""
    wanted = parts.section.workers
    here = rendering_work.Rendering(parts.log, rows, load_rendering(rendering, parts.context), limit)
    work = rows.work()
    count = usable_cores() if wanted == "auto" else int(wanted)
    if parts.plugins is None:
        count, made.alone = 0, "the plugins of this process cannot be started in another"
    elif wanted == 0:
        made.alone = "the recipe says so"
    elif wanted == "auto" and count == 1:
        count, made.alone = 0, "there is one core"
    elif wanted == "auto":
        began = time.monotonic()
        for item in work:
            yield here(item, render=not made.failed)
            if time.monotonic() - began > STARTUP:
                break
        else:
            made.alone = f"prepared in {time.monotonic() - began:.1f} s, before others would have been ready"
            return
    if not count:
        for item in work:
            yield here(item, render=not made.failed)
        return

    def note(told: Note) -> None:
        made.notes.setdefault(*told)
        parts.log.note(told[1], topic=told[0])

    made.workers = count
    with Workers(count, _job(parts, rows, rendering, limit), here, note) as workers:
        yield from workers.render(work, lambda: not made.failed)


def _job(parts: DataParts, rows: SplitRows, rendering: Rendering, limit: Limit | None) -> dict[str, Any]:
    """The information with which a worker builds the same objects."""
    assert parts.plugins is not None
    return {
        "worker": parts.worker,
        "recipe": parts.recipe.as_dict(),
        "plugins": list(parts.plugins.files),
        "blocked": list(parts.plugins.blocked),
        "base": str(parts.plugins.base or Path.cwd()),
        "folder": str(parts.folder),
        "split": rows.split,
        "formats": [picked.registered.full_name for picked in rows.formats],
        "rendering": [rendering.build, dict(rendering.options)],
        "limit": None if limit is None else [limit.max_length, limit.excess_length],
    }


def _media_files(portion: TokenPortion) -> dict[str, str]:
    """Files of the images, sounds and videos of some rows, with their hashes."""
    media = [placed.medium for content in portion.media if content for placed in row_media.unpack(content)]
    return {str(path): digest for medium in media for path, digest in medium.files.items()}


def _total(rows: SplitRows) -> int | None:
    """Bytes of the source files; None if the number of rows does not depend on them."""
    if rows.count is not None or rows.selection is not None:
        return None
    total = 0
    for picked in rows.sources:
        files = picked.files()
        if not files or any(path.suffix in (".gz", ".zst", ".parquet") for path in files):
            return None
        total += sum(path.stat().st_size for path in files)
    return total


def _no_room(folder: Path, error: OSError) -> Exception:
    if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EPERM):
        return error
    return UserError(
        f"{folder}: prepared data cannot be written: {error.strerror}",
        action="make room, or set FT_CACHE to a folder on another disk",
    )
