"""Downloads of a checkpoint's artifact, file by file, for its owner."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from fastapi import APIRouter
from fastapi.responses import StreamingResponse
from pydantic import BaseModel

from finetooth_server.faults import Unknown
from finetooth_server.keeping.checkpoints import WEIGHTS
from finetooth_server.keys import Caller
from finetooth_server.rest.routes import ANSWERS, KEYED, CallerOf, ServiceOf
from finetooth_server.service import Service

download_router = APIRouter(prefix="/v1", responses={401: {"description": "no valid key"}}, dependencies=KEYED)

PIECE = 2**18
PLAIN_BYTES = "application/octet-stream"


class FileBody(BaseModel):
    """A file of an artifact."""

    name: str
    """Its path in the artifact's folder."""
    size: int
    """Bytes."""


@download_router.get("/checkpoints/{id}/files", responses=ANSWERS)
async def artifact_files(id: str, caller: CallerOf, service: ServiceOf) -> list[FileBody]:
    """The files of a checkpoint's artifact, in the layout of peft or transformers."""
    return await asyncio.to_thread(artifact, service, caller, id)


@download_router.get("/checkpoints/{id}/files/{name:path}", response_class=StreamingResponse, responses=ANSWERS)
async def artifact_file(id: str, name: str, caller: CallerOf, service: ServiceOf) -> StreamingResponse:
    """A file of a checkpoint's artifact."""
    file = await asyncio.to_thread(_open_file, service, caller, id, name)
    size = os.fstat(file.fileno()).st_size
    return StreamingResponse(_pieces(file), headers={"Content-Length": str(size)}, media_type=PLAIN_BYTES)


def artifact(service: Service, caller: Caller, id_: str) -> list[FileBody]:
    """The files of a checkpoint's artifact.

    Raises:
        Forbidden: the key may not download.
        Unknown: the caller has no such checkpoint.
    """
    with service.checkpoints.reading(service.downloadable(caller, id_), WEIGHTS, links=True) as folder:
        return [FileBody(name=name, size=file.stat().st_size) for name, file in _within(folder).items()]


def _open_file(service: Service, caller: Caller, id_: str, name: str) -> BinaryIO:
    """
    Raises:
        Unknown: no such file.
    """
    with service.checkpoints.reading(service.downloadable(caller, id_), WEIGHTS, links=True) as folder:
        files = _within(folder)
        if name not in files:
            raise Unknown(f"no file {name!r} in the checkpoint", action="list its files")
        return files[name].open("rb")  # removes the decrypted copy now; it exists until the file is closed


def _within(folder: Path) -> dict[str, Path]:
    """Files by their path; only plain files in the artifact's folder, no links, which may point anywhere."""
    return {
        file.relative_to(folder).as_posix(): file
        for file in sorted(folder.rglob("*"))
        if file.is_file() and not file.is_symlink() and file.resolve().is_relative_to(folder.resolve())
    }


def _pieces(file: BinaryIO) -> Iterator[bytes]:
    with file:
        while piece := file.read(PIECE):
            yield piece
