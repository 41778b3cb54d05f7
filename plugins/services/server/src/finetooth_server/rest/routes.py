"""REST: a route for each primitive, sessions, calls, checkpoints, samplers, served models, health and metrics."""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request, Response, Security
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse
from fastapi.security import APIKeyHeader, HTTPBearer
from finetooth_wire import wire
from starlette.exceptions import HTTPException

from finetooth_server.batches.scores import ScoreRequest
from finetooth_server.faults import Forbidden
from finetooth_server.keys import Caller
from finetooth_server.limits.room import state_of
from finetooth_server.log import Call
from finetooth_server.operations import prompts_of
from finetooth_server.rest import bodies as b
from finetooth_server.rest.answers import CallAnswer
from finetooth_server.rest.reading import ReadRoute, WrongBody, body_fault
from finetooth_server.service import ModelInfo, Service

FACE = "rest"

Seq = Annotated[int | None, Query(gt=0, lt=2**62, description="The call's place, from 1; default is the next one.")]
Wait = Annotated[float, Query(ge=0, le=3600, description="Seconds to wait for the result.")]


async def service_of(request: Request) -> Service:  # a plain function would run in a thread
    """The service that the app was made for."""
    service: Service = request.app.state.service
    return service


async def caller_of(request: Request) -> Caller:
    """The caller, from the guard."""
    caller: Caller = request.state.caller
    return caller


CallerOf = Annotated[Caller, Depends(caller_of)]
ServiceOf = Annotated[Service, Depends(service_of)]

KEYED = [
    Security(HTTPBearer(auto_error=False, scheme_name="bearer", description="Authorization: Bearer KEY")),
    Security(APIKeyHeader(name="X-API-Key", auto_error=False, scheme_name="header")),
]
"""Only for the OpenAPI document: the guard has checked the key before any route."""

router = APIRouter(
    prefix="/v1",
    responses={401: {"description": "no valid key"}},
    dependencies=KEYED,
    route_class=ReadRoute,
)
ANSWERS: dict[int | str, dict[str, Any]] = {
    202: {"description": "accepted, not finished yet"},
    400: {"description": "not taken"},
    403: {"description": "the key lacks the scope"},
    404: {"description": "it does not exist, or is another tenant's"},
    413: {"description": "too large"},
    429: {"description": "too many calls are waiting"},
}


async def _finished(service: Service, caller: Caller, call: Call, wait: float) -> Response:
    """The call as its client sees it, after at most `wait` seconds."""
    return CallAnswer(await service.wait(caller, call.id, wait))


# --- sessions ---------------------------------------------------------------------------------------------------------


@router.post("/sessions", response_model=b.CallBody[b.MadeResult], responses=ANSWERS)
async def new_session(body: b.NewSession, caller: CallerOf, service: ServiceOf, wait: Wait = 30.0) -> Any:
    """Make a model to train; its id is the session's."""

    def make() -> Call:
        session = service.open_session(caller, body.metadata)
        sections = body.model_dump(include={"adapter", "optimizer", "schedule", "train", "strategy"}, exclude_none=True)
        return service.create_model(
            caller,
            session,
            body.base,
            sections,
            id_=body.id,
            checkpoint=body.checkpoint,
            optimizer=body.restore_optimizer,
            about=body.metadata,
            face=FACE,
        )

    return await _finished(service, caller, await asyncio.to_thread(make), wait)


@router.get("/sessions", responses=ANSWERS)
async def list_sessions(caller: CallerOf, service: ServiceOf) -> list[b.SessionBody]:
    """The tenant's sessions that are not closed."""
    return [_session(model) for model in await asyncio.to_thread(service.models, caller)]


@router.get("/sessions/{session}", responses=ANSWERS)
async def one_session(session: str, caller: CallerOf, service: ServiceOf) -> b.SessionBody:
    """A session."""
    return _session(await asyncio.to_thread(service.model, caller, session))


@router.delete("/sessions/{session}", status_code=204, responses=ANSWERS)
async def close_session(session: str, caller: CallerOf, service: ServiceOf) -> None:
    """End a session; its checkpoints stay."""
    await asyncio.to_thread(service.close_model, caller, session)


def _session(model: ModelInfo) -> b.SessionBody:
    return b.SessionBody(
        id=model.id,
        base=model.base,
        recipe={name: value for name, value in model.recipe.items() if name != "model"},
        metadata=dict(model.about),
        created=model.created,
        calls=model.applied + 1,
        next_seq=model.next_seq,
        closed=model.closed,
    )


# --- primitives -------------------------------------------------------------------------------------------------------


def _primitive(name: str, arguments: type[b.Body], result: Any, summary: str) -> None:
    async def route(
        session: str,
        body: Any,
        caller: CallerOf,
        service: ServiceOf,
        seq: Seq = None,
        wait: Wait = 30.0,
    ) -> Any:
        def submit() -> Call:
            return service.submit(caller, session, name, body.model_dump(exclude_none=True), seq=seq, face=FACE)

        return await _finished(service, caller, await asyncio.to_thread(submit), wait)

    route.__name__ = name
    route.__doc__ = summary
    route.__annotations__["body"] = arguments
    router.post(f"/sessions/{{session}}/{name}", response_model=b.CallBody[result], responses=ANSWERS)(route)


_primitive("forward", b.Forward, b.ForwardResult, "Evaluate; keeps a handle for `backward`.")
_primitive("backward", b.Backward, b.BackwardResult, "Accumulate gradients of an earlier forward.")
_primitive("forward_backward", b.ForwardBackward, b.ForwardResult, "Both at once.")
_primitive("step", b.Step, b.StepResult, "Clip, optimizer, schedule; gradients are dropped afterwards.")
_primitive("zero_grad", b.Nothing, b.Nothing, "Drop accumulated gradients.")
_primitive("generate", b.Generate, b.GenerateResult, "Sample from the weights as they are now.")
_primitive("logprobs", b.Logprobs, b.LogprobsResult, "Score targets.")
_primitive("save", b.Save, b.SaveResult, "Write a checkpoint.")
_primitive("load", b.Load, b.LoadResult, "Take a checkpoint's state.")


@router.get("/calls/{id}", response_model=b.CallBody[dict[str, Any]], responses=ANSWERS)
async def one_call(id: str, caller: CallerOf, service: ServiceOf, wait: Wait = 30.0) -> Any:
    """A call that was made earlier; waits for its result."""
    return CallAnswer(await service.wait(caller, id, wait))


@router.delete("/calls/{id}", response_model=b.CallBody[dict[str, Any]], responses=ANSWERS)
async def cancel_call(id: str, caller: CallerOf, service: ServiceOf, wait: Wait = 30.0) -> Any:
    """Cancel a call; waits for its end. One that was finished before stays as it is."""
    call = await asyncio.to_thread(service.cancel, caller, id)
    return await _finished(service, caller, call, wait)


async def refused_body(request: Request, error: Exception) -> Response:
    """Handle an invalid request. One with a place in a sequence fails there, so that later calls can run."""
    if isinstance(error, HTTPException):
        if error.status_code != 400 and not isinstance(error, WrongBody):
            unknown = error.detail in ("Not Found", "Method Not Allowed")
            told = f"{error.detail}{' (/docs lists the addresses and their methods)' if unknown else ''}"
            return JSONResponse({"error": told}, error.status_code, headers=error.headers)
        message = str(error.detail)
    else:
        assert isinstance(error, RequestValidationError)
        message = body_fault(error.errors()[0])
    session, seq = request.path_params.get("session"), request.query_params.get("seq", "")
    operation = request.url.path.rpartition("/")[2]
    if session and seq.isascii() and seq.isdigit() and 0 < int(seq[:19]) < 2**62:
        service, caller = await service_of(request), request.state.caller
        call = await asyncio.to_thread(
            service.submit, caller, session, operation, {}, seq=int(seq), face=FACE, error=message
        )
        return CallAnswer(await service.wait(caller, call.id))
    return JSONResponse({"error": message}, 422)


# --- sampling ---------------------------------------------------------------------------------------------------------


@router.post("/samplers", responses=ANSWERS)
async def new_sampler(body: b.NewSampler, caller: CallerOf, service: ServiceOf) -> b.SamplerBody:
    """Sample from a base model or a checkpoint; calls of all clients are computed together."""

    def make() -> b.SamplerBody:
        id_ = secrets.token_hex(16)
        session = service.open_session(caller)
        base = service.open_sampler(caller, session, id_, base=body.base, checkpoint=body.checkpoint)
        return b.SamplerBody(id=id_, base=base, checkpoint=body.checkpoint)

    return await asyncio.to_thread(make)


@router.post("/samplers/{sampler}/generate", response_model=b.CallBody[b.SampleResult], responses=ANSWERS)
async def sample(
    sampler: str,
    body: b.Sample,
    caller: CallerOf,
    service: ServiceOf,
    seq: Seq = None,
    wait: Wait = 30.0,
) -> Any:
    """Sample one prompt."""

    def submit() -> Call:
        sampling = wire.decode_sampling(body.sampling.model_dump())
        prompt = prompts_of({"prompts": [body.model_dump()["prompt"]]})[0]
        return service.sample(
            caller,
            sampler,
            prompt,
            sampling,
            seq=seq,
            seeded=body.seeded,
            asked=ScoreRequest(prompt=body.prompt_logprobs),
            face=FACE,
        )

    return await _finished(service, caller, await asyncio.to_thread(submit), wait)


# --- facts ------------------------------------------------------------------------------------------------------------


@router.get("/models", responses=ANSWERS)
async def served_models(caller: CallerOf, service: ServiceOf) -> list[b.ServedModel]:
    """Base models that are served."""
    return [b.ServedModel(name=name, model=str(recipe["model"])) for name, recipe in service.settings.models.items()]


@router.get("/limits", responses=ANSWERS)
async def limits(caller: CallerOf, service: ServiceOf) -> b.LimitsBody:
    """What a call and a tenant may take, and what the key's tenant takes now."""
    used = await asyncio.to_thread(service.usage, caller)
    return b.LimitsBody(limits=asdict(service.settings.limits), used=asdict(used))


@router.get("/checkpoints", responses=ANSWERS)
async def list_checkpoints(caller: CallerOf, service: ServiceOf, session: str | None = None) -> list[b.CheckpointBody]:
    """The tenant's checkpoints; of one session if asked."""
    checkpoints = await asyncio.to_thread(service.all_checkpoints, caller, session)
    return [b.CheckpointBody.model_validate(checkpoint) for checkpoint in checkpoints]


@router.get("/checkpoints/{id}", responses=ANSWERS)
async def one_checkpoint(id: str, caller: CallerOf, service: ServiceOf) -> b.CheckpointBody:
    """A checkpoint."""
    return b.CheckpointBody.model_validate(await asyncio.to_thread(service.checkpoint, caller, id))


@router.delete("/checkpoints/{id}", status_code=204, responses=ANSWERS)
async def delete_checkpoint(id: str, caller: CallerOf, service: ServiceOf) -> None:
    """Remove a checkpoint."""
    await asyncio.to_thread(service.delete_checkpoint, caller, id)


open_router = APIRouter()


@open_router.get("/health")
async def health(service: ServiceOf, response: Response) -> b.Health:
    """Whether the server works; needs no key."""
    queued = service.log.counted_lately()
    if queued is None:
        queued = await asyncio.to_thread(service.log.count_waiting)
    status = await asyncio.to_thread(state_of, service)
    response.status_code = 200 if status == "ok" else 503
    return b.Health(status=status, queued=queued)


@open_router.get("/metrics", response_class=PlainTextResponse, dependencies=KEYED)
async def metrics(service: ServiceOf, caller: CallerOf) -> str:
    """Counts in Prometheus' text format, of the key's tenant; of all with the scope `admin`. Needs the scope `read`."""
    if not caller.may("read"):
        raise Forbidden("the key lacks the scope read", action="use a key with the scope read")
    counts = await asyncio.to_thread(service.counts, caller)
    lines = ["# HELP finetooth_calls Calls in the log by state.", "# TYPE finetooth_calls gauge"]
    lines += [f'finetooth_calls{{state="{state}"}} {counts.get(state, 0)}' for state in ("queued", "done", "failed")]
    return "\n".join(lines) + "\n"
