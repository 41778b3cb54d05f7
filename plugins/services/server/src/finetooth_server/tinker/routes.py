"""The Tinker protocol's routes.

Every operation returns a promise at once; the client fetches its result at `retrieve_future`. A request with a sequence
number is never refused: it takes its place and fails there, since the client cannot fill a gap and later calls would
wait forever.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from finetooth_hooks import FinetoothError, ImageChunk, Sampling, UserError, install_command
from finetooth_wire import json_parts, wire

from finetooth_server.batches.scores import ScoreRequest
from finetooth_server.faults import Refused
from finetooth_server.keeping.checkpoints import EXTERNAL, STATE, WEIGHTS, Checkpoint, check_ttl
from finetooth_server.keys import Caller
from finetooth_server.log import Call
from finetooth_server.rest.downloads import artifact_file
from finetooth_server.rest.reading import beside
from finetooth_server.sampling import join_sampler
from finetooth_server.service import Service
from finetooth_server.tinker import checkpoints, facts, names, pages, requests, runs
from finetooth_server.tinker.refusals import REFUSALS, Refusal

FACE = "tinker"
HOLD = 20.0
"""Most seconds that a request for a result waits; the client gives up after 45."""

EPHEMERAL = 7 * 86400.0
"""Seconds for which weights saved only for sampling are kept."""

Json = Mapping[str, Any]
Handler = Callable[[Service, Caller, Json], Any]

CONFIG = {
    "pjwt_auth_enabled": False,
    "sample_use_retrieve_futures": False,
    "sample_join_sampling_session": True,
    "custom_loss_server_side": False,
    "proto_compress_fwdbwd": False,
    "parallel_fwdbwd_chunks": True,
    "sample_max_concurrent_requests": 256,
}
"""What the client may use of this server."""

LIVE_CONFIG = {"sample_cancel_enabled": True}
"""What the client may use of this server; requested repeatedly."""


def tinker_router() -> APIRouter:
    """The routes.

    Raises:
        UserError: the public client's package, whose messages they read, is not installed.
    """
    try:
        from finetooth_server.tinker import convert  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"the Tinker wire needs the package tinker: {error}", action=install_command("finetooth-server[tinker]")
        ) from error
    router = APIRouter(prefix="/api/v1", include_in_schema=False)
    for path, handler in POSTS.items():
        router.post(f"/{path}")(_json_route(handler))
    router.post("/forward_backward")(forward_backward)
    router.post("/retrieve_future")(retrieve_future)
    router.post("/copy_weights")(copy_weights)
    router.get("/healthz")(facts.healthz)
    for method, path, handler in NAMED:
        router.add_api_route(path, _named_route(handler), methods=[method])
    router.get("/checkpoints/{id}/files/{name:path}")(artifact_file)
    for refusal in REFUSALS:
        router.add_api_route(refusal.path, _refusal_route(refusal), methods=[refusal.method])
    return router


# --- plumbing ---------------------------------------------------------------------------------------------------------


def _caller(request: Request) -> tuple[Service, Caller]:
    return request.app.state.service, request.state.caller  # the guard has set the caller


def _json_route(handler: Handler) -> Callable[[Request], Awaitable[Response]]:
    async def route(request: Request) -> Response:
        service, caller = _caller(request)
        body = await _json_of(request)
        named = body.get("model_id") or body.get("session_id")
        request.state.model = named if isinstance(named, str) else ""
        return JSONResponse(await asyncio.to_thread(handler, service, caller, body))

    return route


def _named_route(handler: Handler) -> Callable[[Request], Awaitable[Response]]:
    """A route whose path or query says what it is about; its handler gets that with the body, if there is one."""

    async def route(request: Request) -> Response:
        service, caller = _caller(request)
        body = await _json_of(request)
        about = {**request.query_params, **request.path_params, "origin": str(request.base_url)}
        answer = await asyncio.to_thread(lambda: handler(service, caller, {**body, **about}))
        return Response(status_code=204) if answer is None else JSONResponse(answer)

    return route


def _refusal_route(refusal: Refusal) -> Callable[[Request], Awaitable[Response]]:
    async def route(request: Request) -> Response:
        raise refusal.error()

    return route


async def _json_of(request: Request) -> Json:
    """The JSON object in a request's body.

    Raises:
        UserError: the body is not a JSON object.
    """
    try:
        body = await beside(json_parts.received, await request.body() or b"{}")
    except ValueError as error:
        raise UserError(f"the body cannot be read: {error}", action="send a JSON object") from error
    return wire.mapping(body, "the body")


def _promise(call: Call, **more: Any) -> dict[str, Any]:
    return {"request_id": call.id, "model_id": call.queue, **more}


def _number(body: Json, name: str) -> int:
    value = body.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**62:
        raise UserError(f"{name} is {value!r}", action="give a whole number")
    return value


def _submit(service: Service, caller: Caller, body: Json, operation: str, make: Callable[[], Json]) -> dict[str, Any]:
    """A call on a model; with invalid arguments it fails in its place."""
    arguments: Json = {}
    error = ""
    try:
        arguments = make()
    except Refused as refusal:
        error = str(refusal)
    except FinetoothError as wrong:
        error = str(wrong)
    model = str(body.get("model_id"))
    seq = None if body.get("seq_id") is None else _number(body, "seq_id")
    call = service.submit(caller, model, operation, arguments, seq=seq, face=FACE, error=error)
    return _promise(call)


# --- sessions and models ----------------------------------------------------------------------------------------------


def create_session(service: Service, caller: Caller, body: Json) -> Any:
    pages.check_project(caller, body.get("project_id"))
    about = body.get("user_metadata")
    name = str(body.get("display_name") or "")
    about = about if isinstance(about, Mapping) else None
    id_ = service.open_session(caller, about, name=name, heartbeat=True)
    return {"type": "create_session", "session_id": id_}


def heartbeat(service: Service, caller: Caller, body: Json) -> Any:
    service.note_contact(caller, str(body.get("session_id")), heartbeat=True)
    return {"type": "session_heartbeat"}


def finish(service: Service, caller: Caller, body: Json) -> Any:
    reason, detail = body.get("reason"), body.get("detail")
    how = {} if reason is None else {"reason": dict(wire.mapping(reason, "reason")), "detail": detail}
    service.finish_session(caller, str(body["id"]), how)
    return {}


def create_model(service: Service, caller: Caller, body: Json) -> Any:
    base, session = str(body.get("base_model")), str(body.get("session_id"))
    template = service.settings.models.get(base, {})
    call = service.create_model(
        caller,
        session,
        base,
        requests.sections(body, template, service.facts(base) if template else None),
        id_=names.model_id(session, _number(body, "model_seq_id")),
        about=body.get("user_metadata"),
        echo={"type": "create_model"},
        face=FACE,
    )
    return _promise(call)


def load_weights(service: Service, caller: Caller, body: Json) -> Any:
    caller.must("train")
    path, optimizer = body.get("path"), bool(body.get("optimizer"))
    echo = {"path": path, "type": "load_weights"}
    if body.get("session_id") is None:

        def make() -> Json:
            checkpoints.check_token(body)
            checkpoint = names.find(service, caller, path)
            _check_base(body, checkpoint)
            if body.get("optimizer_config") is not None:
                raise UserError("optimizer_config is not offered for a model that exists", action="leave it out")
            return {"checkpoint": checkpoint.id, "optimizer": optimizer, "echo": echo}

        return _submit(service, caller, body, "load", make)
    checkpoints.check_token(body)
    session, checkpoint = str(body["session_id"]), names.find(service, caller, path)
    _check_base(body, checkpoint)
    if optimizer and body.get("optimizer_config") is not None:
        raise UserError("optimizer_config does not go with optimizer: true", action="leave one of them out")
    call = service.create_model(
        caller,
        session,
        "",
        {} if optimizer else {"optimizer": requests.optimizer(body)},
        id_=names.model_id(session, _number(body, "model_seq_id")),
        checkpoint=checkpoint.id,
        optimizer=optimizer,
        about=body.get("user_metadata"),
        echo=echo,
        face=FACE,
    )
    return _promise(call)


# --- training ---------------------------------------------------------------------------------------------------------


def _images(service: Service, caller: Caller, message: Any) -> Callable[[bytes, str, int, str], ImageChunk]:
    """Opens the images of a request for the base of its model."""

    def chunk(data: bytes, format_: str, expected: int, where: str) -> ImageChunk:
        base = service.model(caller, message.model_id).base
        return service.images.chunk(base, data, format_, expected, where)

    return chunk


async def forward_backward(request: Request) -> Response:
    """The one request whose body is protobuf."""
    from finetooth_server.tinker import convert

    service, caller = _caller(request)
    content = await request.body()

    def submit() -> dict[str, Any]:
        message = convert.read_message(content)
        request.state.model = message.model_id
        arguments: Json = {}
        operation, error = "forward_backward", ""
        try:
            operation, arguments = convert.forward_backward_call(message, _images(service, caller, message))
        except FinetoothError as wrong:
            error = str(wrong)
        seq = message.seq_id
        call = service.submit(caller, message.model_id, operation, arguments, seq=seq, face=FACE, error=error)
        return _promise(call)

    return JSONResponse(await asyncio.to_thread(submit))


def optim_step(service: Service, caller: Caller, body: Json) -> Any:
    def make() -> Json:
        return {"settings": wire.encode_step_settings(requests.step_settings(body))}

    return _submit(service, caller, body, "step", make)


def _check_base(body: Json, checkpoint: Checkpoint) -> None:
    """
    Raises:
        UserError: the checkpoint has another base model.
    """
    base = body.get("base_model")
    if base is not None and base != checkpoint.base:
        raise UserError(
            f"base_model {str(base)[:80]!r}: the checkpoint is of {checkpoint.base!r}", action="leave it out"
        )


def save_weights(service: Service, caller: Caller, body: Json) -> Any:
    return _submit(service, caller, body, "save", lambda: _save(body, STATE, str(body.get("path"))))


def save_weights_for_sampler(service: Service, caller: Caller, body: Json) -> Any:
    def make() -> Json:
        if body.get("path") is not None:
            return _save(body, WEIGHTS, str(body["path"]))
        number = _number(body, "sampling_session_seq_id")
        id_ = names.sampler_id(str(body.get("model_id")).partition(":")[0], number)
        saved = _save(body, WEIGHTS, f"ephemeral-{number}")
        kind = body.get("kind") or "snapshot"
        if kind != "snapshot":
            raise UserError(f"kind {kind!r} of sampling clients is not offered", action="use 'snapshot'")
        return {**saved, "sampler": id_, "ttl": EPHEMERAL, "echo": {"sampling_session_id": id_, "path": None}}

    return _submit(service, caller, body, "save", make)


def save_weights_external(service: Service, caller: Caller, body: Json) -> Any:
    def make() -> Json:
        if body.get("age_encryption_recipients"):
            raise UserError(
                "age_encryption_recipients is not offered: weights travel through the server's own connection",
                action="leave it out; the operator encrypts what is stored with --encryption-key",
            )
        saved = _save(body, EXTERNAL, str(body.get("path")))
        return {**saved, "echo": {**saved["echo"], "type": "save_weights_external"}}

    return _submit(service, caller, body, "save", make)


def _save(body: Json, kind: str, name: str) -> dict[str, Any]:
    ttl = None if body.get("ttl_seconds") is None else wire.number(body["ttl_seconds"], "ttl_seconds")
    check_ttl(ttl)
    path = names.path_of(str(body.get("model_id")), kind, name)
    return {
        "kind": kind,
        "name": name,
        "ttl": ttl,
        "overwrite": bool(body.get("overwrite")),
        "metadata": wire.mapping(body.get("user_metadata") or {}, "user_metadata"),
        "echo": {"path": path},
    }


# --- sampling ---------------------------------------------------------------------------------------------------------


def create_sampling_session(service: Service, caller: Caller, body: Json) -> Any:
    session = str(body.get("session_id"))
    id_ = names.sampler_id(session, _number(body, "sampling_session_seq_id"))
    _open_sampler(service, caller, session, id_, body)
    return {"type": "create_sampling_session", "sampling_session_id": id_}


def _open_sampler(service: Service, caller: Caller, session: str, id_: str, body: Json) -> None:
    path = body.get("model_path")
    checkpoint = None if path is None else names.find(service, caller, path).id
    service.open_sampler(caller, session, id_, base=str(body.get("base_model")), checkpoint=checkpoint)


def join_sampling_session(service: Service, caller: Caller, body: Json) -> Any:
    """A number for a copy of a client, the prefix of its requests' numbers."""
    caller.must("sample")
    return {"client_counter": join_sampler(service.records, caller.tenant, str(body.get("sampling_session_id")))}


def asample(service: Service, caller: Caller, body: Json) -> Any:
    id_ = body.get("sampling_session_id")
    if id_ is None:  # without a session: one for each base, or for a path's current checkpoint
        path = body.get("model_path")
        checkpoint = None if path is None else names.find(service, caller, path).id
        named = json.dumps([caller.tenant, body.get("base_model"), checkpoint])
        id_ = f"sampler-{hashlib.sha256(named.encode()).hexdigest()[:32]}"
        if not service.has_sampler(caller, id_):
            _open_sampler(service, caller, service.open_session(caller), id_, body)
    prompt: list[int] = []
    sampling, seeded, scored, error = Sampling(), False, ScoreRequest(), ""
    try:
        sampling, seeded = requests.sampling(body)
        prompt = requests.prompt(body)
        scored = requests.requested_logprobs(body, len(prompt))
    except FinetoothError as wrong:
        error = str(wrong)
    call = service.sample(
        caller,
        str(id_),
        prompt,
        sampling,
        seq=None if body.get("seq_id") is None else _number(body, "seq_id"),
        seeded=seeded,
        asked=scored,
        layout=None if error else requests.target_layout(body),
        face=FACE,
        error=error,
    )
    ids = [f"{call.id}-{n}" for n in range(min(sampling.n, service.settings.limits.samples))]
    return {"request_id": call.id, "sample_sequence_ids": ids}


async def copy_weights(request: Request) -> Response:
    """A copy; a repeated request with the same `X-Idempotency-Key` finds its copy."""
    service, caller = _caller(request)
    body = {**await _json_of(request), "idempotency": request.headers.get("x-idempotency-key")}
    if request.headers.get("x-tinker-weights-access-token") is not None:
        body["weights_access_token"] = "given"
    return JSONResponse(await asyncio.to_thread(checkpoints.copy_weights, service, caller, body))


# --- results ----------------------------------------------------------------------------------------------------------


async def retrieve_future(request: Request) -> Response:
    """The result of a promise; 408 while there is none, and the client repeats the request at once."""
    from finetooth_server.tinker import convert

    service, caller = _caller(request)
    try:
        id_ = (await beside(json_parts.received, await request.body()))["request_id"]
        if not isinstance(id_, str):
            raise TypeError
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError("the body names no request_id", action="send {request_id}") from error
    call = await service.wait(caller, id_, HOLD)
    if call.state == "queued":
        return JSONResponse({"type": "try_again", "queue_state": "active"}, 408)
    if call.state == "failed":
        return JSONResponse({"error": call.error, "category": call.blame})
    if call.operation in ("forward", "forward_backward", "sample"):
        encode = convert.sample_result if call.operation == "sample" else convert.forward_backward_result
        return Response(await asyncio.to_thread(lambda: encode(call.result)), media_type="application/x-protobuf")
    return JSONResponse(_answer(call))


def cancel_future(service: Service, caller: Caller, body: Json) -> Any:
    """Cancel a call without a waiting client."""
    service.cancel(caller, str(body.get("request_id")))


def _answer(call: Call) -> Any:
    result = dict(call.result)
    echo = result.pop("echo", None) or {}
    if call.operation == "create" or call.operation == "load":
        return {"model_id": call.queue, **echo}
    if call.operation == "step":
        return {"metrics": {name: float(result[name]) for name in ("learning_rate", "grad_norm")}}
    return echo


POSTS: dict[str, Handler] = {
    "client/config": lambda service, caller, body: CONFIG,
    "client/dynamic_config": lambda service, caller, body: LIVE_CONFIG,
    "telemetry": lambda service, caller, body: {"status": "accepted"},
    "create_session": create_session,
    "session_heartbeat": heartbeat,
    "create_model": create_model,
    "get_info": facts.get_info,
    "weights_info": facts.weights_info,
    "optim_step": optim_step,
    "save_weights": save_weights,
    "save_weights_for_sampler": save_weights_for_sampler,
    "save_weights_external": save_weights_external,
    "load_weights": load_weights,
    "create_sampling_session": create_sampling_session,
    "join_sampling_session": join_sampling_session,
    "asample": asample,
}

CHECKPOINT = "/training_runs/{id}/checkpoints/{kind}/{checkpoint}"

NAMED: tuple[tuple[str, str, Handler], ...] = (
    ("POST", "/cancel_future", cancel_future),
    ("GET", "/get_server_capabilities", lambda service, caller, request: facts.capabilities(service)),
    ("GET", "/samplers/{id}", facts.sampler),
    ("GET", "/training_runs", runs.training_runs),
    ("GET", "/training_runs/{id}", runs.training_run),
    ("GET", "/training_runs/{id}/checkpoints", runs.run_checkpoints),
    ("GET", f"{CHECKPOINT}/external_weights_urls", checkpoints.external_urls),
    ("PUT", f"{CHECKPOINT}/ttl", checkpoints.set_ttl),
    ("POST", f"{CHECKPOINT}/publish", checkpoints.publish),
    ("DELETE", f"{CHECKPOINT}/publish", checkpoints.unpublish),
    ("DELETE", CHECKPOINT, checkpoints.delete),
    ("GET", "/checkpoints", checkpoints.user_checkpoints),
    ("GET", "/billing/usage/checkpoints/current", checkpoints.storage),
    ("GET", "/sessions", runs.sessions),
    ("POST", "/sessions/search", runs.search),
    ("GET", "/sessions/{id}", runs.session),
    ("POST", "/sessions/{id}/finish", finish),
)
"""Routes whose path or query says what they are about."""
