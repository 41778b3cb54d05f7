"""The artifact of a checkpoint, file by file: what `export` wrote, for whoever trained it."""

from __future__ import annotations

import asyncio
from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import FileResponse
from pydantic import BaseModel

from finetooth_server.checkpoints import WEIGHTS
from finetooth_server.faults import Unknown
from finetooth_server.keys import Caller
from finetooth_server.rest.routes import ANSWERS, CallerOf, ServiceOf
from finetooth_server.service import Service

download_router = APIRouter(prefix="/v1", responses={401: {"description": "no valid key"}})


class FileBody(BaseModel):
    """A file of an artifact."""

    name: str
    """Its path in the artifact's folder."""
    size: int
    """Bytes."""


@download_router.get("/checkpoints/{id}/files", responses=ANSWERS)
async def artifact_files(id: str, caller: CallerOf, service: ServiceOf) -> list[FileBody]:
    """The files of a checkpoint's artifact, in the layout of peft or transformers."""
    found = await asyncio.to_thread(_files, service, caller, id)
    return [FileBody(name=name, size=file.stat().st_size) for name, file in found.items()]


@download_router.get("/checkpoints/{id}/files/{name:path}", response_class=FileResponse, responses=ANSWERS)
async def artifact_file(id: str, name: str, caller: CallerOf, service: ServiceOf) -> FileResponse:
    """One of them."""
    found = await asyncio.to_thread(_files, service, caller, id)
    if name not in found:
        raise Unknown(f"no file {name!r} in the checkpoint", action="list its files")
    return FileResponse(found[name], media_type="application/octet-stream")


def _files(service: Service, caller: Caller, id_: str) -> dict[str, Path]:
    """Files by their path; only what lies in the artifact's folder has a name here."""
    folder = service.checkpoints.folder(service.checkpoint(caller, id_), WEIGHTS)
    return {file.relative_to(folder).as_posix(): file for file in sorted(folder.rglob("*")) if file.is_file()}
