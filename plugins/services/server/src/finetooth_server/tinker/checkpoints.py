"""Tinker routes for checkpoints: list, keep, publish, copy, fetch, delete."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import quote

from finetooth_hooks import UserError
from finetooth_wire import wire

from finetooth_server.keeping.checkpoints import EXTERNAL, Checkpoint
from finetooth_server.keeping.copies import copy_checkpoint
from finetooth_server.keys import Caller
from finetooth_server.rest.downloads import artifact
from finetooth_server.service import Service
from finetooth_server.tinker import names, pages
from finetooth_server.tinker.requests import whole
from finetooth_server.tinker.runs import checkpoint_facts

Json = Mapping[str, Any]

LISTED = 100
"""Default entries per page."""

GIGABYTE = 1e9


def user_checkpoints(service: Service, caller: Caller, request: Json) -> Any:
    """All of the tenant's, newest first."""
    page = pages.page(request, LISTED)
    checkpoints = service.all_checkpoints(caller)[::-1]
    part = checkpoints[page.offset : page.offset + page.limit]
    return {
        "checkpoints": [checkpoint_facts(checkpoint) for checkpoint in part],
        "cursor": pages.cursor(page, len(checkpoints)),
    }


def storage(service: Service, caller: Caller, request: Json) -> Any:
    """What they take."""
    pages.check_project(caller, request.get("project_id"))
    checkpoints = service.all_checkpoints(caller)
    size = sum(checkpoint.size for checkpoint in checkpoints)
    mine = {
        "project_id": caller.tenant,
        "checkpoint_count": len(checkpoints),
        "size_bytes": size,
        "size_gigabytes": size / GIGABYTE,
    }
    return {"data": [mine] if checkpoints else []}


def delete(service: Service, caller: Caller, request: Json) -> Any:
    """Remove one."""
    caller.must("train")
    service.delete_checkpoint(caller, _own(service, caller, request).id)


def publish(service: Service, caller: Caller, request: Json) -> Any:
    """Let every tenant read it, with its weights; a public one stays public."""
    caller.must("download")
    service.checkpoints.publish(caller.tenant, _own(service, caller, request).id, public=True)


def unpublish(service: Service, caller: Caller, request: Json) -> Any:
    """Let only the tenant read it."""
    caller.must("train")
    service.checkpoints.publish(caller.tenant, _own(service, caller, request).id, public=False)


def set_ttl(service: Service, caller: Caller, request: Json) -> Any:
    """Let it expire after a time, or keep it."""
    caller.must("train")
    seconds = request.get("ttl_seconds")
    checkpoint = _own(service, caller, request)
    ttl = None if seconds is None else wire.number(seconds, "ttl_seconds")
    service.checkpoints.set_ttl(caller.tenant, checkpoint.id, ttl)


def copy_weights(service: Service, caller: Caller, request: Json) -> Any:
    """A copy of a readable checkpoint, with a new run."""
    caller.must("train")
    check_token(request)
    pages.check_project(caller, request.get("destination_project_id"))
    source = names.find(service, caller, request.get("source_path"))
    session = request.get("session_id")
    if session is None:
        number = 0
        key = str(request.get("idempotency") or "")
        session = service.open_session(caller, id_=copy_session_id(caller, key) if key else None)
    else:
        number = whole(request.get("model_seq_id"), "model_seq_id", 0)
        service.note_contact(caller, str(session))
    ttl = request.get("ttl_seconds")
    ttl = None if ttl is None else wire.number(ttl, "ttl_seconds")
    model = names.model_id(str(session), number)
    copy = copy_checkpoint(
        service.records, service.checkpoints, caller, source, session=str(session), model=model, ttl=ttl
    )
    return {"tinker_path": names.path_of(copy.model, copy.kind, copy.name)}


def external_urls(service: Service, caller: Caller, request: Json) -> Any:
    """Temporary addresses without a key for each file of a checkpoint saved for other programs."""
    caller.must("download")
    checkpoint = service.downloadable(caller, _own(service, caller, request).id)
    if checkpoint.kind != EXTERNAL:
        raise UserError(f"{checkpoint.name}: only external weights have addresses", action="call save_weights_external")
    urls, ends = {}, 0.0
    for file in artifact(service, caller, checkpoint.id):
        path = f"{PurePosixPath('/api/v1/checkpoints') / checkpoint.id / 'files' / file.name}"
        ticket, ends = service.tickets.issue(caller, path)
        urls[file.name] = f"{str(request['origin']).rstrip('/')}{quote(path)}?ticket={ticket}"
    return {"urls": urls, "expires": pages.instant(ends)}


def check_token(request: Json) -> None:
    """Check that the request does not read another account's checkpoint.

    Raises:
        UserError: it does.
    """
    if request.get("weights_access_token") is not None:
        raise UserError(
            "weights_access_token is not offered", action="let the owner publish the checkpoint, or use the owner's key"
        )


def copy_session_id(caller: Caller, key: str) -> str:
    """The session of a copy: a repeated request finds its copy."""
    return hashlib.sha256(f"copy {caller.tenant} {key}".encode()).hexdigest()[:32]


def _own(service: Service, caller: Caller, request: Json) -> Checkpoint:
    path = f"{names.SCHEME}{request['id']}/{request['kind']}/{request['checkpoint']}"
    return names.find(service, caller, path, public=False)
