"""Files of rows: claims by file name, and decompressed bytes."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

from finetooth_hooks.claims import Claim
from finetooth_hooks.errors import DataError

from finetooth_toolbox.files.missing import MissingFile

COMPRESSIONS = {".gz": (b"\x1f\x8b", "gzip"), ".zst": (b"\x28\xb5\x2f\xfd", "zstandard")}
"""Endings of compressed files, with their first bytes and names."""

FOREIGN_KINDS = {
    b"PK\x03\x04": "a ZIP archive (or an office document, which is one)",
    b"PK\x05\x06": "a ZIP archive",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive",
    b"Rar!\x1a\x07": "a RAR archive",
    b"\xfd7zXZ\x00": "xz data",
    b"BZh91AY&SY": "bzip2 data",
    b"PAR1\x15": "a Parquet file",
    b"ARROW1\x00\x00": "an Arrow file",
    b"SQLite format 3\x00": "an SQLite database",
    b"%PDF-1.": "a PDF document",
    b"\x89PNG\r\n": "a PNG image",
    b"\xff\xd8\xff": "a JPEG image",
    b"GGUF\x02\x00": "a GGUF model",
    b"GGUF\x03\x00": "a GGUF model",
    **{magic: f"{kind} data" for magic, kind in COMPRESSIONS.values()},
}
"""First bytes of files of other kinds, which text files never have, with descriptions."""
_INSTEAD = {
    "a Parquet file": "rename it to .parquet",
    "an Arrow file": "rename it to .arrow",
    **{f"{kind} data": f"add {ending} to its name" for ending, (_, kind) in COMPRESSIONS.items()},
}
FOREIGN_ENCODINGS = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def claim_file(reference: str, endings: Sequence[str]) -> Claim | None:
    """The claim of a source on files of its own type, whether they exist or not. An address (`https://...`) with any
    ending is not a file: the source that downloads it finds the source for the downloaded file.

    Args:
        endings: in lower case, with the dot; the claim names the longest matching one (`.jsonl.gz`).
    """
    if "://" in reference:
        return None
    fitting = [ending for ending in endings if reference.lower().endswith(ending)]
    return Claim(2, f"a {max(fitting, key=len)} file") if fitting else None


def unpacked_name(name: str) -> str:
    """A file name without the ending of compression."""
    ending = Path(name).suffix
    return name[: -len(ending)] if ending.lower() in COMPRESSIONS else name


@contextmanager
def open_bytes(path: Path) -> Iterator[BinaryIO]:
    """A file's bytes, read on demand; decompressed if its name ends with `.gz`, or `.zst`, which needs pyarrow.

    Raises:
        DataError: the file is missing, a folder, of another kind than its name, truncated or damaged; also raised while
            reading.
    """
    name = path.as_posix()
    if path.is_dir():
        raise DataError(name, "it is a folder", action="name a file in it")
    try:
        with _open(path) as file:
            yield file
    except FileNotFoundError as error:
        raise MissingFile(path) from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(name, f"the gzip data are cut off or damaged ({error})", action="fetch it again") from error
    except OSError as error:
        if error.errno is None and path.suffix.lower() in COMPRESSIONS:
            kind = COMPRESSIONS[path.suffix.lower()][1]
            raise DataError(
                name, f"the {kind} data are cut off or damaged ({error})", action="fetch it again"
            ) from error
        raise DataError(
            name, f"it cannot be read: {error.strerror or error}", action="check its permissions"
        ) from error


def _open(path: Path) -> BinaryIO:
    ending = path.suffix.lower()
    if ending not in COMPRESSIONS:
        file = path.open("rb")
        _check_kind(file.peek(1), path, file.close)
        return file
    magic, kind = COMPRESSIONS[ending]
    with path.open("rb") as file:
        start = file.read(len(magic))
    if start and start != magic:
        raise DataError(
            path.as_posix(),
            f"it is named {ending} but holds no {kind} data",
            action=f"rename it to {Path(path.stem).suffix or path.stem}, or pack it",
        )
    if ending == ".gz":
        return cast(BinaryIO, gzip.open(path, "rb"))
    import pyarrow  # type: ignore[import-untyped]  # 0.2 s; its reader tells a cut file, where python-zstandard's ends early

    return cast(BinaryIO, io.BufferedReader(pyarrow.CompressedInputStream(pyarrow.OSFile(str(path)), "zstd"), 1 << 18))


def _check_kind(start: bytes, path: Path, close: Callable[[], None]) -> None:
    """
    Args:
        start: the first bytes of the file, examined without consuming them: a pipe cannot be read twice.

    Raises:
        DataError: the content does not match the file's name.
    """
    kind = next((kind for magic, kind in FOREIGN_KINDS.items() if start.startswith(magic)), None)
    if kind is not None:
        close()
        named = f" although it is named {path.suffix}" if path.suffix else ""
        action = _INSTEAD.get(kind, "unpack it, or export the rows, and name the file with them")
        raise DataError(path.as_posix(), f"it is {kind}{named}", action=action)


def without_mark(start: bytes, name: str) -> tuple[bytes, bool]:
    """The first bytes of a text file without the byte order mark, and whether there was one.

    Raises:
        DataError: the mark of another encoding.
    """
    encoding = FOREIGN_ENCODINGS.get(start[:2])
    if encoding:
        raise DataError(name, f"it is {encoding}, not UTF-8", action="convert it to UTF-8")
    return start.removeprefix(BYTE_ORDER_MARK), start.startswith(BYTE_ORDER_MARK)
