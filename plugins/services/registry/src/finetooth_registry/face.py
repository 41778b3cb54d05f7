"""The face `registry` of a server: the calls of `anywhere.AnyRegistry` over REST.

Keys, TLS, limits and the audit record are the server's. `read` looks, `download` fetches files, `train` registers,
measures and signs, `admin` releases and reverts. Each tenant has a separate registry in the folder `tenants` of the
served one, so no request can name another tenant's versions; without keys, the tenant `local` has the served one. No
request can change trusted keys.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from finetooth_hooks import CommandContext, FaceBase, UserError, Verdict
from finetooth_hooks.faces import Asgi, FaceCaller, FaceRoute, FaceService
from finetooth_recipes.problems import unknown_key
from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route, Router

from finetooth_registry import records, releasing, schema
from finetooth_registry.anywhere import VARIABLE, Version, VersionTaken, evidence
from finetooth_registry.registry import Registry

PATH = "/registry"
LOCAL = "local"
"""The tenant of a server without keys, whose registry is the served one."""
LOOK, FETCH, WRITE, RELEASE = ("read",), ("download",), ("train",), ("admin",)


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Nothing(_Body):
    """A request without a body."""


class Admission(_Body):
    """A version to register."""

    model: str
    about: dict[str, Any]
    blobs: list[str]


class Registration(_Body):
    """A version: its record and its run's metrics."""

    record: str
    metrics: dict[str, float]
    failed: str = ""


class Record(_Body):
    """A record with more signatures."""

    record: str


class Measurements(_Body):
    """Metrics by name; answers, and their settings, by evaluator."""

    metrics: dict[str, float]
    answers: dict[str, list[dict[str, Any]]]
    settings: dict[str, dict[str, Any]] = {}


class Release(_Body):
    """The channel to ask for."""

    channel: str
    dry_run: bool = False


class GateVerdict(_Body):
    """The verdict of one gate."""

    passed: bool
    reason: str
    evidence: dict[str, Any]


class Watched(_Body):
    """A measurement of a channel's version."""

    channel: str
    metrics: dict[str, float]
    gates: dict[str, GateVerdict]


class Reason(_Body):
    """The reason, for the log."""

    why: str


class Hold(_Body):
    """A channel, and the reason of a hold; an empty reason lifts it."""

    channel: str
    why: str


Parts = Mapping[str, str]
"""Parts of a path and of a query."""


@dataclass(frozen=True)
class Call:
    """A route that answers with JSON.

    Attributes:
        does: gets the registry, the parts of the address and the body.
        changes: whether the audit record lists it.
    """

    method: str
    path: str
    scopes: tuple[str, ...]
    does: Callable[[Registry, Parts, Any], Any]
    takes: type[_Body] = Nothing
    changes: bool = False


def _version(registry: Registry, parts: Parts) -> Version:
    return registry.version(f"{parts['model']}@v{parts['number']}")


def _count(parts: Parts, name: str) -> int:
    """
    Raises:
        UserError: the text is not a number.
    """
    text = parts.get(name, "0")
    if not text.isdecimal():
        raise UserError(f"{name}: {text[:20]!r} is not a number", action="send what the command sends")
    return int(text)


def _metrics(registry: Registry, parts: Parts, body: Any) -> Any:
    metrics, answers = registry.metrics(_version(registry, parts))
    return {"metrics": metrics, "answers": answers}


def _admission(registry: Registry, parts: Parts, body: Admission) -> Any:
    registry.admit(body.model, body.about)
    return {"missing": [sha256 for sha256 in body.blobs if registry.blobs.size(sha256) is None]}


def _register(registry: Registry, parts: Parts, body: Registration) -> Any:
    named = parts["model"], int(parts["number"])
    return registry.enter(*named, body.record.encode(), metrics=body.metrics, failed=body.failed)


def _watched(registry: Registry, parts: Parts, body: Watched) -> Any:
    verdicts = {name: Verdict(**gate.model_dump()) for name, gate in body.gates.items()}
    return {"cycles": registry.watched(_version(registry, parts), body.channel, body.metrics, verdicts)}


CALLS = (
    Call("GET", "/policy", LOOK, lambda registry, parts, body: registry.policy.model_dump()),
    Call("GET", "/keys", LOOK, lambda registry, parts, body: {
        name: records.key_to_json(key) for name, key in registry.trusted().items()
    }),
    Call("GET", "/log", LOOK, lambda registry, parts, body: [asdict(event) for event in registry.events(
        parts.get("model", ""), [kind for kind in parts.get("kinds", "").split(",") if kind],
        **{name: _count(parts, name) for name in ("after", "most", "newest")},
    )]),
    Call("GET", "/versions", LOOK, lambda registry, parts, body: [
        asdict(version) for version in registry.versions(
            parts.get("model", ""), _count(parts, "newest"), parts.get("artifact", "")
        )
    ]),
    Call("GET", "/versions/{model}/next", WRITE, lambda registry, parts, body: registry.next_version(parts["model"])),
    Call("GET", "/versions/{model}/{number:int}/metrics", LOOK, _metrics),
    Call("POST", "/admission", WRITE, _admission, Admission, True),
    Call("POST", "/versions/{model}/{number:int}", WRITE, _register, Registration, True),
    Call("POST", "/versions/{model}/{number:int}/metrics", WRITE, lambda registry, parts, body: registry.measure(
        _version(registry, parts), body.metrics, body.answers, body.settings
    ), Measurements, True),
    Call("GET", "/versions/{model}/{number:int}/record", LOOK, lambda registry, parts, body: registry.record(
        _version(registry, parts)
    ).decode()),
    Call("POST", "/versions/{model}/{number:int}/record", WRITE, lambda registry, parts, body: registry.replace_record(
        _version(registry, parts), body.record.encode()
    ), Record, True),
    Call("POST", "/versions/{model}/{number:int}/watched", WRITE, _watched, Watched, True),
    Call("POST", "/versions/{model}/{number:int}/revert", RELEASE, lambda registry, parts, body: releasing.revert(
        registry, _version(registry, parts), body.why, records.own_signer()
    ), Reason, True),
    Call("POST", "/versions/{model}/{number:int}/hold", RELEASE, lambda registry, parts, body: releasing.hold(
        registry, _version(registry, parts), body.channel, body.why, records.own_signer()
    ), Hold, True),
    Call("POST", "/channels/{model}/{channel}/rollback", RELEASE, lambda registry, parts, body: releasing.roll_back(
        registry, parts["model"], parts["channel"], body.why, records.own_signer()
    ), Reason, True),
)  # fmt: skip
BLOB, PROMOTE = "/blobs/{sha256}", "/versions/{model}/{number:int}/promote"


class Tenants:
    """The registry of each tenant, opened once, made at the tenant's first request.

    Args:
        folder: of the served registry.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._opened, self._lock = folder, {LOCAL: Registry(folder)}, threading.Lock()

    async def of(self, request: Request) -> Registry:
        """The caller's registry."""
        return await asyncio.to_thread(self._open, _who(request).tenant)

    def _open(self, tenant: str) -> Registry:
        with self._lock:
            if tenant not in self._opened:
                # file systems may not distinguish Team and team
                name = re.sub("[A-Z]", lambda letter: f"~{letter[0].lower()}", tenant)
                folder = self._folder / schema.TENANTS / name
                self._opened[tenant] = Registry(folder) if schema.is_registry(folder) else Registry.create(folder)
            return self._opened[tenant]


class RegistryFace(FaceBase):
    """See `finetooth_hooks.faces.Face`.

    Args:
        commands: builds release gates.
        folder: of the registry.
    """

    capabilities = frozenset({"modelless"})
    path = PATH
    routes = (
        *(FaceRoute(call.method, call.path, call.scopes) for call in CALLS),
        FaceRoute("POST", PROMOTE, RELEASE),
        FaceRoute("GET", BLOB, FETCH),
        FaceRoute("PUT", BLOB, WRITE),
    )

    def __init__(self, commands: CommandContext, folder: Path) -> None:
        self._commands, self._folder = commands, folder

    def app(self, service: FaceService) -> tuple[Asgi, AbstractAsyncContextManager[Any]]:
        """The server checks bodies and keys; the face checks scopes."""
        tenants = Tenants(self._folder)

        def promote(opened: Registry, parts: Parts, body: Release) -> Any:
            version = _version(opened, parts)
            passed, verdicts = releasing.promote(
                self._commands, opened, version, body.channel, dry_run=body.dry_run, signer=records.own_signer()
            )
            return {"passed": passed, "gates": evidence(verdicts)}

        calls = (*CALLS, Call("POST", PROMOTE, RELEASE, promote, Release, True))
        routes = [Route(PATH + call.path, _answers(call, tenants, service), methods=[call.method]) for call in calls]
        routes.append(Route(PATH + BLOB, _fetches(tenants), methods=["GET"]))
        routes.append(Route(PATH + BLOB, _receives(tenants, service), methods=["PUT"]))
        return Router(routes), nullcontext()


def build(context: CommandContext) -> RegistryFace:
    """Builder of the face `registry`; FT_REGISTRY names the registry's folder, by default `registry`."""
    return RegistryFace(context, Path(os.environ.get(VARIABLE) or "registry"))


def _answers(call: Call, tenants: Tenants, service: FaceService) -> Callable[[Request], Any]:
    async def answer(request: Request) -> Response:
        caller = _who(request)
        if not any(map(caller.may, call.scopes)):
            return _forbidden(call.scopes)
        content, registry = await request.body(), await tenants.of(request)
        parts = {**request.query_params, **request.path_params}
        try:
            body = call.takes.model_validate_json(content or b"{}")
            reply = await asyncio.to_thread(call.does, registry, parts, body)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(map(str, first["loc"]))
            sent = None if first["type"] == "json_invalid" else json.loads(content or b"{}")
            raise unknown_key(error, call.takes, sent, noun="field") or UserError(
                f"{where or 'body'}: {first['msg']}", action="send what the command sends"
            ) from error
        except VersionTaken as error:
            return JSONResponse({"error": str(error)}, 409)
        if call.changes:
            done = call.path.rpartition("/")[2].replace("{number:int}", "version")
            service.record(f"registry {done}", caller, model=str(parts.get("model", "")))
        return JSONResponse(asdict(reply) if isinstance(reply, Version) else reply)

    return answer


def _fetches(tenants: Tenants) -> Callable[[Request], Any]:
    async def answer(request: Request) -> Response:
        if not any(map(_who(request).may, FETCH)):
            return _forbidden(FETCH)
        sha256, registry = request.path_params["sha256"], await tenants.of(request)
        size = await asyncio.to_thread(registry.blobs.size, sha256)
        if size is None:
            return JSONResponse({"error": f"blob {sha256} is missing"}, 404)
        pieces: Iterator[bytes] = registry.blobs.pieces(sha256)
        return StreamingResponse(pieces, media_type="application/octet-stream", headers={"Content-Length": str(size)})

    return answer


def _receives(tenants: Tenants, service: FaceService) -> Callable[[Request], Any]:
    async def answer(request: Request) -> Response:
        caller = _who(request)
        if not any(map(caller.may, WRITE)):
            return _forbidden(WRITE)
        content, query = await request.body(), request.query_params
        try:
            offset, size = int(query["offset"]), int(query["size"])
        except (KeyError, ValueError) as error:
            raise UserError("offset and size: numbers are needed", action="send what the command sends") from error
        sha256, upload = request.path_params["sha256"], query.get("upload", "")
        registry = await tenants.of(request)
        whole = await asyncio.to_thread(registry.blobs.receive, sha256, upload, offset, size, content)
        if whole:
            service.record("registry blob", caller)
        return JSONResponse({"whole": whole})

    return answer


def _who(request: Request) -> FaceCaller:
    caller: FaceCaller = request.scope["state"]["caller"]
    return caller


def _forbidden(scopes: tuple[str, ...]) -> Response:
    return JSONResponse({"error": f"the key lacks the scope {' or '.join(scopes)} (use another key)"}, 403)
