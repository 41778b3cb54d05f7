"""Tinker routes for training runs and sessions: lists, single ones, and a search."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from finetooth_hooks import UserError
from finetooth_wire import wire

from finetooth_server.keeping.checkpoints import EXTERNAL, STATE, WEIGHTS
from finetooth_server.keeping.history import SessionRecord
from finetooth_server.keys import Caller
from finetooth_server.model_info import ModelInfo
from finetooth_server.service import Service
from finetooth_server.tinker import names, pages
from finetooth_server.tinker.facts import adapter_facts

Json = Mapping[str, Any]

RUNS, SESSIONS, SEARCHED = 20, 20, 50
"""Default entries per page."""

MOST_FOUND = 200


def training_runs(service: Service, caller: Caller, request: Json) -> Any:
    """The tenant's models, newest first."""
    pages.check_scope(request)
    pages.check_project(caller, request.get("project_id"))
    page = pages.page(request, RUNS)
    runs, count = service.history.runs(caller, page)
    return {"training_runs": [_run(service, caller, run) for run in runs], "cursor": pages.cursor(page, count)}


def training_run(service: Service, caller: Caller, request: Json) -> Any:
    """A model, as a run."""
    pages.check_scope(request)
    return _run(service, caller, service.history.run(caller, str(request["id"])))


def run_checkpoints(service: Service, caller: Caller, request: Json) -> Any:
    """Checkpoints of a model."""
    run = service.history.run(caller, str(request["id"]))
    return {"checkpoints": [checkpoint_facts(checkpoint) for checkpoint in service.all_checkpoints(caller, run.id)]}


def checkpoint_facts(checkpoint: Any) -> dict[str, Any]:
    """A checkpoint in the protocol's format."""
    path = names.path_of(checkpoint.model, checkpoint.kind, checkpoint.name)
    return {
        "checkpoint_id": "/".join(path.split("/")[-2:]),
        "checkpoint_type": {STATE: "training", WEIGHTS: "sampler", EXTERNAL: "external"}[checkpoint.kind],
        "time": pages.instant(checkpoint.created),
        "tinker_path": path,
        "size_bytes": checkpoint.size,
        "public": checkpoint.public,
        "user_metadata": pages.texts(checkpoint.metadata),
        "expires_at": pages.instant(checkpoint.expires),
    }


def _run(service: Service, caller: Caller, run: ModelInfo) -> dict[str, Any]:
    saved = service.all_checkpoints(caller, run.id)
    last: dict[str, Any] = {checkpoint.kind: checkpoint_facts(checkpoint) for checkpoint in saved}
    return {
        "training_run_id": run.id,
        "base_model": run.base,
        "model_owner": caller.tenant,
        "corrupted": False,
        "last_request_time": pages.instant(run.used),
        "last_checkpoint": last.get(STATE),
        "last_sampler_checkpoint": last.get(WEIGHTS),
        "user_metadata": pages.texts(run.about),
        **adapter_facts(run.recipe),
    }


def sessions(service: Service, caller: Caller, request: Json) -> Any:
    """The tenant's sessions, newest first."""
    pages.check_scope(request)
    records = service.history.sessions(caller, pages.page(request, SESSIONS))
    return {"sessions": [record.id for record in records]}


def session(service: Service, caller: Caller, request: Json) -> Any:
    """A session: its models, its samplers, and its client's notes."""
    pages.check_scope(request)
    record, models, samplers = service.history.session(caller, str(request["id"]))
    return {
        "training_run_ids": models,
        "sampler_ids": samplers,
        "user_metadata": pages.texts(record.about),
        "display_name": record.name or None,
    }


def search(service: Service, caller: Caller, request: Json) -> Any:
    """Sessions that fit, newest first."""
    owner = wire.mapping(request.get("owner") or {"type": "own"}, "owner").get("type")
    if owner not in ("own", "accessible"):
        raise UserError(f"owner {owner!r} is not offered: sessions belong to tenants", action="leave it out")
    for project in wire.sequence(request.get("project_ids") or [], "project_ids"):
        pages.check_project(caller, project)
    about = wire.mapping(request.get("user_metadata") or {}, "user_metadata")
    statuses = None if request.get("statuses") is None else wire.sequence(request["statuses"], "statuses")
    limit = pages.page(request, SEARCHED).limit
    if limit > MOST_FOUND:
        raise UserError(f"limit is {limit}", action=f"choose 1 to {MOST_FOUND}")
    at = request.get("cursor")
    after = None
    if at is not None:
        at = wire.mapping(at, "cursor")
        after = (pages.seconds(at.get("last_created_at")), str(at.get("last_session_id")))

    def wanted(record: SessionRecord) -> bool:
        texts = pages.texts(record.about) or {}
        fits = all(texts.get(name) == value for name, value in about.items())
        return fits and (statuses is None or any(_has(record, status) for status in statuses))

    records = service.history.search(
        caller,
        wanted,
        id_=str(request.get("session_id") or ""),
        words=str(request.get("display_name") or "").split(),
        after=after,
        limit=limit,
    )
    last = records[-1] if len(records) == limit else None
    return {
        "sessions": [_summary(service, caller, record) for record in records],
        "next_cursor": last and {"last_created_at": pages.instant(last.created), "last_session_id": last.id},
    }


def _summary(service: Service, caller: Caller, record: SessionRecord) -> dict[str, Any]:
    runs = service.history.session(caller, record.id)[1]
    saved = [checkpoint for run in runs for checkpoint in service.all_checkpoints(caller, run)]
    return {
        "session_id": record.id,
        "created_at": pages.instant(record.created),
        "owner": caller.tenant,
        "project_id": caller.tenant,
        "status": _status(record),
        "checkpoints_count": len(saved),
        "display_name": record.name or None,
        "user_metadata": pages.texts(record.about),
        "checkpoint_storage_bytes": sum(checkpoint.size for checkpoint in saved),
    }


def _status(record: SessionRecord) -> dict[str, Any] | None:
    if not record.closed:
        return {"type": "active"}
    if not record.finish:
        return None  # its client disappeared
    return {"type": "client_finished", **record.finish}


def _has(record: SessionRecord, query: Any) -> bool:
    query, status = wire.mapping(query, "statuses"), _status(record)
    if status is None or status["type"] != query.get("type"):
        return False
    reasons = query.get("reasons")
    return reasons is None or status.get("reason", {}).get("type") in wire.sequence(reasons, "statuses.reasons")
