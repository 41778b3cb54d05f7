"""The source `llamafactory`: it lists others, which the rows come from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from finetooth_hooks import DataError, Options, RecipeError, Row
from finetooth_hooks.bases import SourceBase
from finetooth_hooks.context import Context
from finetooth_hooks.protocols import Source
from finetooth_rows import dataset_info

from finetooth_llamafactory.plugin import parted

ASIDE = ("format", "max_rows")
"""Keys of a pick that are not the source's own options."""


class LlamaFactoryOptions(Options):
    """Options of `llamafactory`."""

    path: str
    """The folder with `dataset_info.json`, or that file. Names of datasets may follow a colon:
    `data:identity,alpaca_en_demo`."""
    datasets: str | list[str] = ""
    """Datasets to read: a list, or names separated by commas. May be left out if the file lists only one."""


def build(options: LlamaFactoryOptions, context: Context) -> DatasetFolder:
    """Builds the source of the named datasets of a LLaMA-Factory folder.

    Raises:
        DataError: the file is missing or broken, or lists no dataset of that name.
        RecipeError: no dataset is named, or nothing here reads it.
    """
    path, behind = options.path, ""
    if not Path(path).exists():
        path, behind = parted(path)
    chosen = options.datasets if isinstance(options.datasets, list) else options.datasets.split(",")
    names = [name.strip() for name in (*behind.split(","), *chosen) if name.strip()]
    file = Path(path) if Path(path).name == dataset_info.FILE else Path(path) / dataset_info.FILE
    entries = dataset_info.read_listing(file)
    if not names and len(entries) == 1:
        names = list(entries)
    if not names:
        known = sorted(entries)
        more = f" and {len(known) - 20} more" if len(known) > 20 else ""
        raise RecipeError(
            "source llamafactory, datasets",
            f"{file.as_posix()} lists {', '.join(known[:20]) or 'none'}{more}",
            action=f"name those you mean: {path}:{known[0] if known else 'NAME'}",
        )
    if twice := next((name for index, name in enumerate(names) if name in names[:index]), ""):
        raise RecipeError(
            "source llamafactory, datasets", f"{twice} is named twice", action="name it once, with weight: 2"
        )
    picks = [_pick(entries, name, file, context) for name in names]
    return DatasetFolder(file, tuple(picks), context)


def _pick(entries: Mapping[str, Mapping[str, Any]], name: str, file: Path, context: Context) -> Mapping[str, Any]:
    dataset = dataset_info.listed(entries, name, file.parent)
    where = f"{file.as_posix()}, {name}"
    if dataset.pick is None:
        last = dataset.remarks[-1]
        raise DataError(where, f"{last.key} is not taken", action=last.text)
    for line in dataset_info.remark_lines(dataset.remarks, where):
        context.note(line)
    return dataset.pick


class DatasetFolder(SourceBase):
    """Sources that a file lists, one after another.

    Args:
        file: that lists them.
        picks: of the sources, with the format of each.
    """

    def __init__(self, file: Path, picks: tuple[Mapping[str, Any], ...], context: Context) -> None:
        self._file, self._picks, self._context = file, picks, context

    def stands_for(self) -> tuple[Mapping[str, Any], ...]:
        return self._picks

    def rows(self) -> Iterator[Row]:
        """Yields the rows of each dataset in turn.

        Raises:
            DataError: of one of the sources.
        """
        for source in self._sources():
            yield from source.rows()

    def files(self) -> tuple[Path, ...] | None:
        """The list and the files of all its sources; None if one of them has none.

        Raises:
            DataError: a dataset is missing in the listing.
        """
        paths = [self._file]
        for source in self._sources():
            files = source.files()
            if files is None:
                return None
            paths += files
        return tuple(paths)

    def _sources(self) -> Iterator[Source]:
        for pick in self._picks:
            yield self._context.build("source", {key: value for key, value in pick.items() if key not in ASIDE})
