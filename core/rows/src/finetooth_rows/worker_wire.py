"""Messages between this process and a worker: a JSON header and some bytes, never code."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, BinaryIO

import numpy as np
from finetooth_hooks.data.examples import Row
from finetooth_hooks.errors import FinetoothError, UserError
from finetooth_hooks.protocols import Portion

from finetooth_rows.read_so_far import Reading
from finetooth_rows.rendering_work import Rendered
from finetooth_rows.storage.token_rows import TokenPortion
from finetooth_rows.tally import Tally
from finetooth_rows.work import Work

_LENGTHS = struct.Struct("<QQ")
_TYPES = (np.int64, np.int32, np.int64, np.int32, np.float32)
"""Types of the arrays of a `TokenPortion`, in order."""

Header = Mapping[str, Any]


def send(stream: BinaryIO, header: Header, *parts: bytes) -> None:
    """Write one message."""
    text = json.dumps(header).encode()
    stream.write(_LENGTHS.pack(len(text), sum(len(part) for part in parts)))
    stream.write(text)
    for part in parts:
        stream.write(part)
    stream.flush()


def receive(stream: BinaryIO) -> tuple[Header, bytes] | None:
    """Read one message; None at the end of the stream.

    Raises:
        EOFError: the stream ends inside a message.
    """
    start = stream.read(_LENGTHS.size)
    if not start:
        return None
    header, body = _LENGTHS.unpack(_whole(start, _LENGTHS.size))
    return json.loads(_whole(stream.read(header), header)), _whole(stream.read(body), body)


def _whole(content: bytes, length: int) -> bytes:
    if len(content) != length:
        raise EOFError(f"{len(content)} bytes of {length}")
    return content


def pack_work(work: Work, render: bool) -> tuple[Header, bytes] | None:
    """Work as a message; None for rows that JSON cannot restore exactly (bytes, dates, media)."""
    header: dict[str, Any] = {"source": work.source, "size": work.size, "render": render, "time": work.time}
    if isinstance(work.rows, Portion):
        return {**header, "place": list(work.rows.place), "places": work.places}, work.rows.content
    if any(row.folder is not None for row in work.rows):
        return None
    rows = [[row.id, dict(row.values)] for row in work.rows]
    try:
        text = json.dumps(rows)
    except (TypeError, ValueError):
        return None
    return (header, text.encode()) if json.loads(text) == rows else None


def unpack_work(header: Header, body: bytes) -> Work:
    """From `pack_work`."""
    source, size, time = (header[name] for name in ("source", "size", "time"))
    if "place" not in header:
        return Work(source, tuple(Row(id_, values) for id_, values in json.loads(body)), size, time=time)
    places = header["places"]
    portion = Portion(body, tuple(header["place"]))
    return Work(source, portion, size, None if places is None else tuple(places), time)


def pack_rendered(rendered: Rendered) -> tuple[Header, list[bytes]]:
    """The result of work as a message."""
    portion = rendered.portion
    header = {
        "ids": list(portion.ids),
        "lengths": [array.nbytes for array in portion.arrays],
        "media": [len(content) for content in portion.media],
        "about": [content.decode() for content in portion.about],
        "tally": rendered.tally.as_json(),
        "reading": rendered.reading.as_json(),
        "notes": list(rendered.notes),
        "size": rendered.size,
    }
    arrays = [array.astype(type_, copy=False) for array, type_ in zip(portion.arrays, _TYPES, strict=True)]
    return header, [*(array.tobytes() for array in arrays), *portion.media, bytes(rendered.reading.digests)]


def unpack_rendered(header: Header, body: bytes) -> Rendered:
    """From `pack_rendered`."""
    arrays: list[Any] = []
    begin = 0
    for length, type_ in zip(header["lengths"], _TYPES, strict=True):
        arrays.append(np.frombuffer(body, type_, length // np.dtype(type_).itemsize, begin))
        begin += length
    media = []
    for length in header["media"]:
        media.append(body[begin : begin + length])
        begin += length
    return Rendered(
        replace(
            TokenPortion(header["ids"], *arrays), media=tuple(media), about=tuple(map(str.encode, header["about"]))
        ),
        Tally.from_json(header["tally"]),
        Reading.from_json(header["reading"], body[begin:]),
        tuple((topic, text) for topic, text in header["notes"]),
        header["size"],
    )


def pack_failure(error: Exception, trace: str, explain: Callable[[BaseException], tuple[str, str]]) -> Header:
    """An error that ends the work.

    Args:
        explain: gives problem and action of a foreign exception.
    """
    if isinstance(error, FinetoothError):
        return {"failure": [error.problem, error.action, error.exit_code], "trace": trace}
    return {"failure": [*explain(error), 1], "trace": trace}


def unpack_failure(content: Sequence[Any], trace: str) -> FinetoothError:
    """From `pack_failure`: the same line, the same exit code."""
    problem, action, exit_code = content
    error = (
        UserError(problem, action=action)
        if exit_code == UserError.exit_code
        else FinetoothError(problem, action=action)
    )
    error.add_note(f"in the worker:\n{trace}")
    return error
