"""The source `datasets`: rows of a file, of a folder, or of a hub dataset."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import datasets  # type: ignore[import-untyped]
from finetooth_hooks import DataError, Row
from finetooth_hooks.bases import SourceBase
from finetooth_toolbox.files.hub import why_unreachable, without_retries
from finetooth_toolbox.struct_padding import padding_note, without_padding
from finetooth_toolbox.text.nearest import is_in_folder, nearest_path

from finetooth_datasets import tables
from finetooth_datasets.builder import DatasetsOptions
from finetooth_datasets.plugin import ENDINGS, is_saved

BUILDERS = {".csv": "csv", ".tsv": "csv", ".json": "json", ".parquet": "parquet", ".arrow": "arrow"}
OFFLINE = {"OfflineModeIsEnabled", "LocalEntryNotFoundError", "ConnectionError", "ConnectError", "ConnectTimeout"}
SLICE = re.compile(r"(?P<name>[^\[\]]+)(\[.*\])?")


class DatasetsSource(SourceBase):
    """Rows by the datasets library. Tables fill absent values with null: formats read that of a column as absent, and
    those inside structs are left out here, see `finetooth_toolbox.struct_padding`.

    Args:
        note: told once if there are such nulls.
    """

    def __init__(self, options: DatasetsOptions, note: Callable[[str], None] = lambda text: None) -> None:
        self._options, self._note = options, note
        self._loaded: Any = None

    def files(self) -> tuple[Path, ...] | None:
        """The file, or all files below the folder but hidden ones; of a hub dataset see `identity`."""
        path = Path(self._options.path)
        if path.suffix.lower() in ENDINGS:
            return (path,)
        if not path.is_dir():
            return None
        entries = (file for file in sorted(path.rglob("*")) if file.is_file())
        return tuple(file for file in entries if not any(p.startswith(".") for p in file.relative_to(path).parts))

    def identity(self) -> str | None:
        """Of a hub dataset: the library's fingerprint, made of the repository's commit, the configuration and the
        split, and the addresses of the files it read, which name the commit too; None of one that is streamed.

        Raises:
            DataError: see `rows`.
        """
        if self._options.streaming:
            return None  # nothing of it is kept
        dataset = self._hub()
        fingerprint = getattr(dataset, "_fingerprint", None)
        if not fingerprint:
            return None
        addresses = sorted(map(str, getattr(dataset.info, "download_checksums", None) or ()))
        return json.dumps([fingerprint, len(dataset), str(dataset.features), addresses])

    def rows(self) -> Iterator[Row]:
        """Yields the rows that the datasets library reads.

        Raises:
            DataError: a file is missing or broken, a split is unknown, or the hub cannot be reached.
        """
        options = self._options
        if options.streaming:
            yield from self._streamed()
        elif Path(options.path).suffix.lower() in ENDINGS:
            # the library converts to Arrow on disk and maps that, so memory does not grow with the rows (but for .json,
            # which is read as a whole); a local file is converted quickly, and a cache of it would only grow
            with tempfile.TemporaryDirectory() as cache:
                yield from self._rows(self._file(cache))
        else:
            yield from self._rows(self._saved() if is_saved(Path(options.path)) else self._hub())

    def _rows(self, dataset: Any) -> Iterator[Row]:
        name = f"{self._options.path}:{self._options.split}"
        features = getattr(dataset, "features", None) or {}
        padded = False
        for index, values in enumerate(dataset):
            unpadded = {key: _without_padding(value, features.get(key)) for key, value in values.items()}
            if not padded and (columns := [key for key in values if unpadded[key] != values[key]]):
                self._note(padding_note(name, columns[0]))
                padded = True
            yield Row(f"{name}:{index}", unpadded)

    def _streamed(self) -> Iterator[Row]:
        """Yields the rows; a connection that breaks later gives the same error as one that cannot be made."""
        options = self._options
        if Path(options.path).exists() or Path(options.path).suffix.lower() in ENDINGS:
            raise DataError(options.path, "streaming is for a dataset of the hub", action="leave streaming out")
        if "[" in options.split:
            raise DataError(
                options.path,
                f"with streaming, split {options.split!r} cannot have a slice: how many rows there are is not known",
                action='name the whole split, with slice: "[100:200]" next to it for a part, or leave streaming out',
            )
        try:
            with without_retries():
                dataset = self._loaded_dataset(streaming=True)
            yield from self._rows(dataset)
        except Exception as error:  # as below, and the hub client's own
            raise self._broken(error) from error

    def _file(self, cache: str) -> Any:
        path = Path(self._options.path)
        ending = path.suffix.lower()
        tables.check(path)
        arguments: dict[str, Any] = {}
        if ending == ".tsv":
            arguments["sep"] = "\t"
        if ending in (".csv", ".tsv"):
            # a field stays what the file says: 007 and 1.50 are text, NA and nothing are not null
            features = datasets.Features({name: datasets.Value("string") for name in tables.header(path)})
            arguments.update(features=features, keep_default_na=False, na_values=[])
        if self._options.field is not None:
            arguments["field"] = self._options.field
        try:
            with _quiet():
                return datasets.load_dataset(
                    BUILDERS[ending],
                    data_files=str(path),
                    split=self._options.split,
                    cache_dir=cache,
                    **arguments,
                )
        except Exception as error:  # pyarrow, pandas and datasets raise classes of their own for what a user can fix
            raise self._broken(error) from error

    def _hub(self) -> Any:
        """A dataset of the hub, or of a folder with files of one; the same whenever it is asked for, so that the rows
        are those that were identified."""
        options = self._options
        if self._loaded is None:
            try:
                with nullcontext() if Path(options.path).is_dir() else without_retries():
                    self._loaded = self._loaded_dataset()
            except Exception as error:  # as above, and the hub client's own
                raise self._broken(error) from error
        return self._loaded

    def _loaded_dataset(self, **more: Any) -> Any:
        """The library's data set for the path and the options that name a part of it."""
        options = self._options
        about = {"split": options.split, "revision": options.revision, "data_files": options.data_files, **more}
        return datasets.load_dataset(options.path, options.config, **about)

    def _saved(self) -> Any:
        """A dataset that `save_to_disk` wrote."""
        try:
            saved = datasets.load_from_disk(self._options.path)
            splits = saved if isinstance(saved, datasets.DatasetDict) else {"train": saved}
            lengths = {name: len(split) for name, split in splits.items()}
            slices = datasets.ReadInstruction.from_spec(self._options.split).to_absolute(lengths)
            parts = [splits[part.splitname].select(range(part.from_, part.to)) for part in slices]
        except Exception as error:  # as above
            raise self._broken(error) from error
        return parts[0] if len(parts) == 1 else datasets.concatenate_datasets(parts)

    def _broken(self, error: BaseException) -> DataError:
        names = set()
        root = error
        while True:
            names |= {cls.__name__ for cls in type(root).__mro__}
            if root.__cause__ is None and root.__context__ is None:
                break
            root = root.__cause__ or root.__context__  # type: ignore[assignment]
        path = self._options.path
        if names & OFFLINE:
            why, close = why_unreachable(), nearest_path(Path(path))
            if is_in_folder(path):  # a path is meant
                action = f"did you mean {close.as_posix()}?" if close else "check the path"
                return DataError("", f"no such file or folder: {path}; nor can the hub be asked for it", action=action)
            meant = f"did you mean {close.as_posix()}? Else " if close else ""
            return DataError(
                path,
                f"it is not on this machine, and the hub cannot be reached{f' ({why})' if why else ''}",
                action=f"{meant}name a local file; or where there is a network: hf download --repo-type dataset {path} "
                "--local-dir FOLDER, and here {name: datasets, path: FOLDER}",
            )
        if "DatasetNotFoundError" in names:
            return DataError(path, "no such dataset on the hub", action="check the spelling, or name a local file")
        text = " ".join(str(error).split())
        if "Unknown split" in text:
            split = SLICE.fullmatch(self._options.split)
            named = split["name"] if split else self._options.split
            return DataError(path, f"it has no split {named!r}: {text[:200]}", action="set split to one of them")
        reason = " ".join(str(root).split())[:200] or type(root).__name__
        return DataError(path, f"it cannot be read: {reason}", action="check the file")


def _without_padding(value: Any, feature: Any) -> Any:
    """A value without the nulls of its structs; values that the library stores as JSON stay unchanged."""
    if feature is None:
        return without_padding(value)
    if isinstance(feature, dict) and isinstance(value, dict):
        return {key: _without_padding(item, feature.get(key)) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        each = feature[0] if isinstance(feature, list) else getattr(feature, "feature", feature)
        return value if each is feature else [_without_padding(item, each) for item in value]
    return value


@contextmanager
def _quiet() -> Iterator[None]:
    """Hides progress bars while data are read at once."""
    shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()
