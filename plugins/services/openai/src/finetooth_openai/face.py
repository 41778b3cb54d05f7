"""The face: routes, keys, and errors in OpenAI's shape."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, MutableMapping
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Any

from finetooth_hooks import FaceBase
from finetooth_hooks.faces import Asgi, FaceCaller, FaceRoute, FaceService, Json
from finetooth_wire import json_parts
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response, StreamingResponse

from finetooth_openai.answers import ChatAnswer, Scored, chat_logprobs, envelope, shown_of_text, text_logprobs, usage
from finetooth_openai.asking import PendingRequest, ask
from finetooth_openai.embeddings import embeddings
from finetooth_openai.faults import Fault, error_body
from finetooth_openai.requests import Body, ChatRequest, CompletionRequest, EmbeddingRequest, RequestBase, read
from finetooth_openai.response_events import response_events
from finetooth_openai.responses import ResponseRequest, response
from finetooth_openai.served import Models
from finetooth_openai.streaming import event_stream, events

LOGGER = logging.getLogger("finetooth.openai")

PATH = "/v1"

CHAT, COMPLETIONS, MODELS = "/chat/completions", "/completions", "/models"
RESPONSES, EMBEDDINGS = "/responses", "/embeddings"

SAMPLE, LOOK = ("sample",), ("read", "train", "sample")


class OpenAIFace(FaceBase):
    """See `finetooth_hooks.faces.Face`."""

    capabilities = frozenset[str]()
    path = PATH
    routes = (
        FaceRoute("POST", CHAT, SAMPLE),
        FaceRoute("POST", COMPLETIONS, SAMPLE),
        FaceRoute("POST", RESPONSES, SAMPLE),
        FaceRoute("POST", EMBEDDINGS, SAMPLE),
        FaceRoute("GET", MODELS, LOOK),
        FaceRoute("GET", f"{MODELS}/{{model:path}}", LOOK),
    )

    def refusal(self, status: int, message: str) -> Json:
        return error_body(status, message, code="invalid_api_key" if status == 401 else None)

    def app(self, service: FaceService) -> tuple[Asgi, AbstractAsyncContextManager[Any]]:
        """The server checks the size of bodies, keys and access."""
        models = Models(service)

        async def answer(scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
            try:
                response = await respond(service, models, scope, receive)
            except Fault as fault:
                content = error_body(fault.status, str(fault), fault.param, fault.code)
                response = JSONResponse(content, fault.status)
            await response(scope, receive, send)

        return answer, nullcontext()


async def respond(service: FaceService, models: Models, scope: MutableMapping[str, Any], receive: Any) -> Response:
    """The answer to a request."""
    caller: FaceCaller = scope["state"]["caller"]
    path = scope["path"].removeprefix(scope.get("root_path", "")).removeprefix(PATH)
    if path == MODELS:
        offered = await asyncio.to_thread(models.all, caller)
        return JSONResponse({"object": "list", "data": [model.json() for model in offered]})
    if path.startswith(MODELS):
        model = await asyncio.to_thread(models.find, caller, path.removeprefix(f"{MODELS}/"))
        return JSONResponse(model.json())
    return await _answered(service, models, caller, path, HttpRequest(scope, receive))


KINDS: dict[str, type[RequestBase]] = {
    CHAT: ChatRequest, COMPLETIONS: CompletionRequest, RESPONSES: ResponseRequest, EMBEDDINGS: EmbeddingRequest,
}  # fmt: skip
"""The request body of each route."""


async def _answered(
    service: FaceService, models: Models, caller: FaceCaller, path: str, request: HttpRequest
) -> Response:
    """The answer of a model to a request."""
    content = await request.body()

    def begin() -> tuple[Any, PendingRequest[Any]]:
        body = _read(KINDS[path], content)
        if not isinstance(body, ResponseRequest):
            return body, ask(service, models, caller, body)
        with body.in_own_names():
            return body, ask(service, models, caller, body.chat())

    body, read_ = await asyncio.to_thread(begin)
    pending = await read_.begun(request.is_disconnected)
    if pending is None:
        return Response(status_code=499)  # nobody is there to read it
    service.record(f"openai {path.lstrip('/')}", caller, model=pending.model.name, outcome="taken")
    if path != EMBEDDINGS and body.stream:
        stream = await (event_stream(pending, response_events(body, pending)) if path == RESPONSES else events(pending))
        return StreamingResponse(stream, media_type="text/event-stream", headers={"Cache-Control": "no-store"})
    results = await pending.results(request.is_disconnected)
    if results is None:
        return Response(status_code=499)  # nobody is there to read it
    shaped: dict[str, Callable[[], Any]] = {
        CHAT: lambda: chat(pending, results),
        COMPLETIONS: lambda: completions(pending, results),
        RESPONSES: lambda: response(body, pending, results[0]),
        EMBEDDINGS: lambda: embeddings(pending, results),
    }
    return JSONResponse(await asyncio.to_thread(shaped[path]))


def _read(kind: type[Body], content: bytes) -> Body:
    """A request's body, parsed outside the event loop, since large ones take long.

    Raises:
        Fault: the body is not a request of this route.
    """
    try:
        body = json_parts.received(content)
    except ValueError as error:
        raise Fault(f"the body cannot be read: {error}", action="send a JSON object") from error
    return read(kind, body)


def chat(pending: PendingRequest[ChatRequest], results: list[Mapping[str, Any]]) -> dict[str, Any]:
    """The answer to a chat."""
    body, context = pending.body, pending.model.context
    choices = []
    for n, completion in enumerate(results[0]["completions"]):
        id_ = f"{pending.calls[0]}_{n}"
        answer = ChatAnswer(context, completion["tokens"], body.stops, id_, must_call=bool(body.must_call))
        choice = {"index": n, "message": answer.message(), "logprobs": None, "finish_reason": answer.finish(completion)}
        if body.logprobs:
            tokens = completion["tokens"][: answer.shown]
            top = Scored.of(completion)
            choice["logprobs"] = chat_logprobs(context.tokenizer, tokens, completion["logprobs"][: answer.shown], top)
        choices.append(choice)
    head = envelope("chat.completion", pending.calls[0], pending.body.model)
    return {**head, "choices": choices, "usage": usage(pending.prompts, results)}


def completions(pending: PendingRequest[CompletionRequest], results: list[Mapping[str, Any]]) -> dict[str, Any]:
    """The answer to prompts without chat markup."""
    body, tokenizer = pending.body, pending.model.context.tokenizer
    choices: list[dict[str, Any]] = []
    for prompt, result in zip(pending.prompts, results, strict=True):
        for completion in result["completions"]:
            choice = {
                "index": len(choices),
                "text": completion["text"],
                "logprobs": None,
                "finish_reason": completion["stop"],
            }
            if body.return_token_ids:  # as in vLLM: all sampled tokens, with the stop token
                choice |= {"token_ids": list(completion["tokens"]), "prompt_token_ids": list(prompt)}
            if body.logprobs is not None:
                whole = len(completion["tokens"])
                shown = whole if body.return_token_ids else shown_of_text(tokenizer, completion, body.stops)
                tokens = completion["tokens"][:shown]
                choice["logprobs"] = text_logprobs(
                    tokenizer, tokens, completion["logprobs"][:shown], Scored.of(completion)
                )
            choices.append(choice)
    head = envelope("text_completion", pending.calls[0], pending.body.model)
    return {**head, "choices": choices, "usage": usage(pending.prompts, results)}
