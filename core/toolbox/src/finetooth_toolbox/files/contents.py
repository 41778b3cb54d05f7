"""What the files of a model hold, as `ModelInfo.contents` says it: hashed when somebody first asks, then remembered."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from threading import Lock

from finetooth_toolbox.files.cache_folder import cache_folder
from finetooth_toolbox.files.file_hashes import FileHashes


class FileContents(Mapping[str, str]):
    """SHA-256 by the name of a file. No file is read before somebody asks; what `FileHashes` remembers on disk is not
    read again while the file system says that it did not change.

    Args:
        files: by name; or what finds them, for files that may arrive later.
        also: contents that are known, or hashed by somebody else, of other names.

    Raises:
        DataError: while it is read: a file is gone, or changes.
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
