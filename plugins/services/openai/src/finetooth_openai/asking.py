"""Makes calls of the service from a request, and waits for them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, Generic

from finetooth_hooks import FinetoothError, Sampling
from finetooth_hooks.faces import FaceCaller, FaceService
from finetooth_toolbox.messages.prompts import encode_document
from finetooth_wire.bounds import texts_in, too_long

from finetooth_openai.faults import Fault
from finetooth_openai.media import shown_prompt
from finetooth_openai.messages import messages_of
from finetooth_openai.requests import (
    LONGEST,
    Body,
    ChatRequest,
    CompletionRequest,
    EmbeddingRequest,
    Request,
    RequestBase,
    not_offered,
)
from finetooth_openai.served import Model, Models
from finetooth_openai.thoughts import thinks

HOLD = 2.0
"""Seconds between two checks that the client is still connected."""

AT_ONCE = 16
"""Calls between two such checks."""

COMPLETIONS = 2048
"""Most prompts of a request, and most completions of all of them."""

Left = Callable[[], Awaitable[bool]]
"""Tells whether the client has disconnected."""


@dataclass(frozen=True)
class PendingRequest(Generic[Body]):
    """A request that is being computed.

    Attributes:
        body: as received.
        prompts: token ids of each.
        sampler: of the model's weights.
        sampling: settings for all prompts.
        calls: id of the call of each prompt; only those of `begun` exist.
    """

    service: FaceService
    caller: FaceCaller
    body: Body
    model: Model
    prompts: Sequence[Sequence[int]]
    sampler: str
    sampling: Sampling
    calls: tuple[str, ...] = ()

    async def begun(self, left: Left) -> PendingRequest[Body] | None:
        """The request with its calls submitted, a few at a time; None, with all of them cancelled, if the client
        disconnected.

        Raises:
            FinetoothError: the service refuses a call.
        """
        started = self
        for at in range(0, len(self.prompts), AT_ONCE):
            try:
                calls = await asyncio.to_thread(self._submit, self.prompts[at : at + AT_ONCE])
            except BaseException:
                await started.cancel()
                raise
            started = replace(started, calls=started.calls + calls)
            if len(started.calls) < len(self.prompts) and await left():
                await started.cancel()
                return None
        return started

    def _submit(self, prompts: Sequence[Sequence[int]]) -> tuple[str, ...]:
        """Submit the calls of some prompts, or none of them."""
        calls: list[str] = []
        seeded, top = self.body.seeded, self.body.top
        embeds = isinstance(self.body, EmbeddingRequest)
        try:
            for prompt in prompts:
                calls.append(self.service.sample(self.caller, self.sampler, prompt, self.sampling, seeded=seeded,
                                                 top_logprobs=top, embedding=embeds))  # fmt: skip
        except FinetoothError:
            for call in calls:
                self.service.cancel(self.caller, call)
            raise
        return tuple(calls)

    async def results(self, left: Left) -> list[Mapping[str, Any]] | None:
        """The result of each prompt's call; None, with the calls cancelled, if the client disconnected."""
        answers: list[Mapping[str, Any]] = []
        for call in self.calls:
            result = await finished(self.service, self.caller, call, left)
            if result is None:
                await self.cancel()
                return None
            answers.append(result)
        return answers

    async def cancel(self) -> None:
        """Cancel the calls of a disconnected client."""

        def all_of_them() -> None:
            for call in self.calls:
                self.service.cancel(self.caller, call)

        await asyncio.to_thread(all_of_them)  # a thread continues after its request's task is cancelled


def ask(service: FaceService, models: Models, caller: FaceCaller, body: Body) -> PendingRequest[Body]:
    """Check and tokenise a request, without computing. May wait for a disk.

    Raises:
        Fault: the key may not sample, the model is unknown, or the prompt leaves no room.
        UserError: the service refuses it.
    """
    check_scope(caller)
    model = models.find(caller, body.model)
    if isinstance(body, ChatRequest) and thinks(model.context):
        _check_thinking(body)
    for token in (body.logit_bias or ()) if isinstance(body, Request) else ():
        if not 0 <= token < model.context.facts.vocab_size:
            raise Fault(f"logit_bias: the model has no token {token}", param="logit_bias",
                        action=f"name ids below {model.context.facts.vocab_size}")  # fmt: skip
    if isinstance(body, EmbeddingRequest):
        _check_embedding(model, body)
    if body.top and model.summed:
        field, fewer = (
            ("top_logprobs", "leave it out") if isinstance(body, ChatRequest) else ("logprobs", "set it to 0")
        )
        raise Fault(f"{field}: of a sum of adapters the likeliest tokens are not known", param=field,
                    action=f"{fewer}, or ask one adapter by itself, without a weight")  # fmt: skip
    prompts = _prompts(model, body)
    sampling = body.sampling(min(_room(model, prompt, body) for prompt in prompts))
    base = "" if model.checkpoint or model.stack else model.base
    sampler = service.sampler(caller, base=base, checkpoint=model.checkpoint, stack=model.stack)
    return PendingRequest(service, caller, body, model, prompts, sampler, sampling)


def check_scope(caller: FaceCaller) -> None:
    """Checks that the caller may sample.

    Raises:
        Fault: the key may not sample.
    """
    if not caller.may("sample"):
        raise Fault("the key lacks the scope sample", action="use another key", status=403)


def _check_thinking(body: ChatRequest) -> None:
    """
    Raises:
        Fault: a reasoning model cannot answer in this form.
    """
    if body.schema_text is not None:
        field = "tool_choice" if body.must_call else "response_format"
        raise Fault("this model thinks aloud before it answers, which a schema leaves no room for",
                    action=f"ask without {field}", param=field)  # fmt: skip
    if body.reasoning_effort not in (None, "medium"):
        raise not_offered("reasoning_effort", "how long this model thinks is its own choice")


def _check_embedding(model: Model, body: EmbeddingRequest) -> None:
    """
    Raises:
        Fault: the model cannot give such an embedding.
    """
    if model.summed:
        raise Fault("a sum of adapters gives no embeddings", param="model",
                    action="ask one adapter by itself, without a weight")  # fmt: skip
    size = model.context.facts.hidden_size
    if (body.dimensions or 0) > size:
        raise Fault(f"dimensions: the model's embeddings have {size} numbers", param="dimensions",
                    action="ask for fewer")  # fmt: skip


async def finished(
    service: FaceService, caller: FaceCaller, call: str, left: Left | None = None
) -> Mapping[str, Any] | None:
    """A call's result; None if the client disconnected before it."""
    while True:
        answer = await service.wait(caller, call, HOLD)
        if answer["state"] != "queued":
            return result_of(answer)
        if left is not None and await left():
            return None


def result_of(call: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns the result of a finished call.

    Raises:
        Fault: it failed.
    """
    if call["state"] == "failed":
        wrong = call["error"]
        raise Fault(str(wrong["message"]), status=wrong["status"])
    result: Mapping[str, Any] = call["result"]
    return result


def _prompts(model: Model, body: RequestBase) -> list[Sequence[int]]:
    context = model.context
    if isinstance(body, ChatRequest):
        tools = () if body.tool_choice == "none" else body.tools or model.opening.tools
        _check_length(model, chain(_texts_of(body), texts_in(tools)), "messages")
        messages = model.opening.before(messages_of(body.messages))
        if any(message.media for message in messages):
            return [shown_prompt(context, model.name, messages, tools)]
        return [list(context.renderer.prompt(messages, tools))]
    if isinstance(body, EmbeddingRequest):
        return _texts(model, body.input, "input", 1)
    assert isinstance(body, CompletionRequest)
    return _texts(model, body.prompt, "prompt", body.n or 1)


def _texts(
    model: Model, texts: str | list[str] | list[int] | list[list[int]], field: str, count: int
) -> list[Sequence[int]]:
    """Token ids of prompts without chat markup.

    Args:
        field: their field in the request.
        count: answers to each.
    """
    context = model.context
    prompts: list[Any] = [texts] if isinstance(texts, str) or isinstance(texts[0], int) else [*texts]
    if len(prompts) * count > COMPLETIONS:
        raise Fault(f"{len(prompts):,} prompts, {count} completions of each, {COMPLETIONS:,} completions are taken",
                    action="send fewer at once", param=field)  # fmt: skip
    if too_long((prompt for prompt in prompts if isinstance(prompt, str)), None):
        raise Fault("the prompts together are too long", action="send fewer at once", param=field)
    encoded: list[Sequence[int]] = []
    for n, prompt in enumerate(prompts):
        if isinstance(prompt, str):
            _check_length(model, [prompt], field if prompt is texts else f"{field}[{n}]")
        ids = list(encode_document(prompt, context.tokenizer, context.markup) if isinstance(prompt, str) else prompt)
        if not ids:
            raise Fault("a prompt has no tokens", action="give a text", param=f"{field}[{n}]")
        encoded.append(ids)
    return encoded


def _texts_of(body: ChatRequest) -> Iterator[str]:
    """The texts of a request's messages that become part of the prompt."""
    for message in body.messages:
        if isinstance(message.content, str):
            yield message.content
        else:
            yield from (part.text or "" for part in message.content or ())
        yield from (message.reasoning_content or "", message.name or "")
        for call in message.tool_calls or ():
            yield from texts_in(call.function)


def _check_length(model: Model, texts: Iterable[str], param: str) -> None:
    """
    Raises:
        Fault: the texts have more characters than the model's longest input can have.
    """
    if most := too_long(texts, model.context.facts.max_positions):
        raise Fault(f"{param}: more than {most:,} characters, which the model does not read at once",
                    action="shorten it", param=param, code="context_length_exceeded")  # fmt: skip


def _room(model: Model, prompt: Sequence[int], body: RequestBase) -> int:
    """Tokens that an answer may have.

    Raises:
        Fault: prompt and answer exceed the model's length.
    """
    most = model.context.facts.max_positions
    wanted = body.longest
    if not most:
        return LONGEST if wanted is None else wanted
    room, least = most - len(prompt), 0 if isinstance(body, EmbeddingRequest) else wanted or 1
    if room < least:
        field = "messages" if isinstance(body, ChatRequest) else "prompt" if least else "input"
        raise Fault(
            f"the prompt has {len(prompt)} tokens, {least} are asked for, and the model was made for {most}",
            action="shorten it, or ask for less",
            param=field,
            code="context_length_exceeded",
        )
    return min(room, LONGEST) if wanted is None else wanted
