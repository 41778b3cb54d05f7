"""Hashes of a model's files for `ModelInfo.contents`, computed at the first access and remembered."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from threading import Lock

from finetooth_toolbox.files.cache_folder import cache_folder
from finetooth_toolbox.files.file_hashes import FileHashes


class FileContents(Mapping[str, str]):
    """SHA-256 by file name. Files are read at the first access. Files with a hash in `FileHashes` on disk are not read
    again, unless the file system reports a change.

    Args:
        files: paths by name; or a function that finds them, for files that may arrive later.
        also: hashes of further names that are known, or computed elsewhere.

    Raises:
        DataError: during an access: a file is missing, or changes.
    """

    def __init__(
        self, files: Mapping[str, Path] | Callable[[], Mapping[str, Path]], also: Mapping[str, str] | None = None
    ) -> None:
        self._also = also or {}
        self._find = files if callable(files) else lambda: files
        self._hashes = FileHashes(cache_folder() / "files")
        self._read: dict[str, str] = {}
        self._lock = Lock()

    def __getitem__(self, name: str) -> str:
        if name in self._also:
            return self._also[name]
        with self._lock:
            if name not in self._read:
                self._read[name] = self._hashes.sha256(self._find()[name])
            return self._read[name]

    def __iter__(self) -> Iterator[str]:
        return iter(sorted({*self._find(), *self._also}))

    def __len__(self) -> int:
        return len({*self._find(), *self._also})
