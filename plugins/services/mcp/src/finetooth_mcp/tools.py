"""The tools. Their docstrings are the descriptions that an assistant reads."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from finetooth_hooks import Sampling, UserError
from finetooth_hooks.faces import FaceCaller, FaceService
from finetooth_wire import wire

from finetooth_mcp import arguments as a
from finetooth_mcp import runs
from finetooth_mcp.rows import Reader, Readers

WAIT = 30.0
"""Seconds for which a tool waits for its call."""

Json = dict[str, Any]

INSTRUCTIONS = """\
Fine-tune a language model step by step, and try it out. In this order:

1. list_models: which base models there are.
2. new_session: a model of your own on one of them, with an adapter and an optimizer. It returns the session's id,
   which every other tool takes.
3. show_rows: how your rows become tokens, and which of them train. Look at one or two before you train.
4. logprobs on a few held-out rows, and generate: how the model does before training.
5. forward_backward with a batch of rows, then step; again and again. One pair is one optimizer step. For a small
   fine-tune take 4 to 32 rows a step, go over all rows several times, and watch the loss, in nats per token: it should
   fall. If it rises or jumps, take a lower learning rate.
6. logprobs on the held-out rows and generate again, to see what changed. Training loss that falls while held-out
   loss rises is overfitting: stop, or load an earlier checkpoint.
7. save, and close_session. Checkpoints stay.

A tool that answers {"state": "queued", "call": ID} is still at work: call wait_for_call with that id. Calls of a
session are done in the order in which they were made."""


@dataclass(frozen=True)
class Desk:
    """The context of a tool's call.

    Attributes:
        caller: of this call.
        started: whether it is the process that started the server, over standard input.
    """

    service: FaceService
    readers: Readers
    caller: FaceCaller
    started: bool = False

    async def reader(self, session: str) -> Reader:
        """Reads rows for a session's model."""
        opened = await asyncio.to_thread(self.service.session, self.caller, session)
        return await asyncio.to_thread(self.readers.of, opened)

    async def finished(self, call: str, summary: Callable[[Any], Json]) -> Json:
        """The result of a call; its id while it is unfinished.

        Raises:
            UserError: it failed.
        """
        outcome = await self.service.wait(self.caller, call, WAIT)
        if outcome["state"] == "queued":
            return {"state": "queued", "call": call, "next": "call wait_for_call with this id"}
        if outcome["state"] == "failed":
            raise UserError(outcome["error"]["message"])
        return summary(outcome)

    async def primitive(self, session: str, operation: str, arguments: Json) -> Json:
        """One of the primitives."""
        call = await asyncio.to_thread(self.service.submit, self.caller, session, operation, arguments)
        return await self.finished(call, call_summary)


def call_summary(call: Mapping[str, Any]) -> Json:
    """A finished call, in short: numbers as lists, without fields for programs only."""
    result = call["result"]
    match call["operation"]:
        case "create":
            return {"session": call["session"], "parameters": result["parameters"], "trained": result["trained"]}
        case "forward":
            evaluation = _evaluation_json(result)
            if result["handle"] is not None:
                evaluation["handle"] = result["handle"]["id"]
            return {**evaluation, "logprobs": [_numbers(of["logprobs"]) for of in result["outputs"]]}
        case "forward_backward":
            return _evaluation_json(result)
        case "logprobs":
            rows = [_numbers(row) for row in result["logprobs"]]
            return {"rows": [{"sum": float(f"{sum(row):.9g}"), "logprobs": row} for row in rows]}
        case "generate":
            return {
                "completions": [
                    [
                        {
                            "text": completion["text"],
                            "stop": completion["stop"],
                            "tokens": completion["tokens"],
                            "logprobs": completion["logprobs"],
                        }
                        for completion in of
                    ]
                    for of in result["completions"]
                ]
            }
        case _:
            return dict(result)


def _evaluation_json(result: Mapping[str, Any]) -> Json:
    evaluation = {"loss": result["loss"], "tokens": result["tokens"], "targets": result["targets"]}
    return {**evaluation, **({"metrics": result["metrics"]} if result["metrics"] else {})}


def _numbers(encoded: Any) -> list[float]:
    """Nine digits restore a float32 exactly."""
    values = wire.decode_array(encoded, "logprobs")
    return [float(f"{value:.9g}") for value in np.ravel(values).tolist()]


# --- what the tools do ------------------------------------------------------------------------------------------------


async def list_models(desk: Desk, arguments: a.Nothing) -> Json:
    """Base models that can be trained here, with the settings that a session has by default. Next: new_session."""
    models = []
    for name, recipe in desk.service.served.items():
        sections = {key: recipe[key] for key in ("adapter", "optimizer", "schedule", "train") if key in recipe}
        models.append({"name": name, "defaults": sections})
    return {"models": models}


async def new_session(desk: Desk, arguments: a.NewSession) -> Json:
    """Make a model to train, on a base model or from a checkpoint. Returns `session`, the id that other tools take, and
    how many parameters there are and how many of them train. Next: show_rows, then forward_backward."""
    sections = arguments.model_dump(include={"adapter", "optimizer", "schedule", "train"}, exclude_none=True)
    call = await asyncio.to_thread(
        lambda: desk.service.open(
            desk.caller,
            base=arguments.base,
            sections=sections,
            checkpoint=arguments.checkpoint,
            restore_optimizer=arguments.restore_optimizer,
        )
    )
    return await desk.finished(call, call_summary)


async def list_sessions(desk: Desk, arguments: a.Nothing) -> Json:
    """Your sessions that are not closed, with their recipes and how many calls each has had. Next: any tool, with the
    id of one."""
    return {"sessions": await asyncio.to_thread(desk.service.sessions, desk.caller)}


async def close_session(desk: Desk, arguments: a.OfSession) -> Json:
    """End a session. Its checkpoints stay; what was not saved is gone. Call save before."""
    await asyncio.to_thread(desk.service.close, desk.caller, arguments.session)
    return {"closed": arguments.session}


async def show_rows(desk: Desk, arguments: a.Rows) -> Json:
    """How rows become tokens in this session's model: `tokens`, `text` with special tokens spelled, `trained_tokens`
    and `trained_text`, what the loss counts. Changes nothing. Next: forward_backward with all rows of a step."""
    reader = await desk.reader(arguments.session)

    def show() -> Json:
        rows = []
        for rendered in reader.all_rendered(arguments.rows):
            trained = [token for token, weight in zip(rendered.tokens, rendered.weights, strict=True) if weight]
            rows.append(
                {
                    "tokens": list(rendered.tokens),
                    "trained_tokens": len(trained),
                    "text": reader.text(rendered.tokens),
                    "trained_text": reader.text(trained),
                }
            )
        return {"rows": rows}

    return await asyncio.to_thread(show)


async def _data(desk: Desk, arguments: a.Rows) -> list[Any]:
    reader = await desk.reader(arguments.session)
    return [wire.encode_datum(datum) for datum in await asyncio.to_thread(reader.data, arguments.rows)]


async def forward_backward(desk: Desk, arguments: a.ForwardBackward) -> Json:
    """Evaluate a loss on a batch of rows and add its gradient to those that wait for `step`. Returns `loss` (for
    cross_entropy the mean over trained tokens, in nats; about 2 to 4 before training on chat, and about ln(vocabulary)
    for a model that knows nothing), `tokens` (positions read) and `targets` (tokens that counted). Next: step."""
    sent = {"data": await _data(desk, arguments), "loss": arguments.loss, "normalizer": arguments.normalizer}
    return await desk.primitive(arguments.session, "forward_backward", sent)


async def forward(desk: Desk, arguments: a.Forward) -> Json:
    """Score rows and keep what `backward` needs, for a loss of your own. Returns `handle`, and `logprobs`: for each row
    the natural logarithm of the probability of each token but the first, 0 where it does not train. Compute dL/dlogprob
    from them. Next: backward."""
    sent: Json = {"data": await _data(desk, arguments)}
    if arguments.loss is not None:
        sent["loss"] = arguments.loss
    return await desk.primitive(arguments.session, "forward", sent)


async def backward(desk: Desk, arguments: a.Backward) -> Json:
    """Add the gradient of an earlier `forward` to those that wait for `step`: of its loss, or from dL/dlogprob that you
    give, shaped as its `logprobs`. A handle can be used once, and until the next step. Returns `grad_norm`. Next: step.
    """
    sent: Json = {"handle": arguments.handle}
    if arguments.grads is not None:
        sent["grads"] = [wire.encode_array(np.asarray(row, np.float32)) for row in arguments.grads]
    return await desk.primitive(arguments.session, "backward", sent)


async def step(desk: Desk, arguments: a.Step) -> Json:
    """One update of the weights with the gradients so far, which are then dropped. Returns the `step` number, the
    `learning_rate` applied, `grad_norm` (L2 norm of all gradients before clipping) and `skipped`. It fails if no
    gradients wait. Next: forward_backward with the next rows, or logprobs, generate or save."""
    settings = arguments.model_dump(include={"learning_rate", "max_grad_norm"}, exclude_none=True)
    return await desk.primitive(arguments.session, "step", {"settings": settings} if settings else {})


async def zero_grad(desk: Desk, arguments: a.OfSession) -> Json:
    """Drop the gradients that wait for `step`. Next: forward_backward."""
    return await desk.primitive(arguments.session, "zero_grad", {})


async def logprobs(desk: Desk, arguments: a.Logprobs) -> Json:
    """Score rows without training: for each row `logprobs` (natural logarithms, for each token but the first, 0 where
    it does not train) and their `sum`. The held-out loss is minus the sum of all sums divided by the number of trained
    tokens."""
    return await desk.primitive(
        arguments.session, "logprobs", {"data": await _data(desk, arguments), "role": arguments.role}
    )


async def generate(desk: Desk, arguments: a.Generate) -> Json:
    """Sample completions from the weights as they are now. Returns `completions`, a list for each prompt: `text`,
    `tokens`, `logprobs`, and `stop` (`stop` or `length`). Next: more training, or save."""
    reader = await desk.reader(arguments.session)
    prompts = await asyncio.to_thread(reader.prompts, arguments.prompts)
    chosen = arguments.model_dump(
        include={"max_tokens", "temperature", "top_p", "min_p", "repetition_penalty", "n", "seed"}
    )
    sampling = wire.encode_sampling(Sampling(**chosen, stop=tuple(arguments.stop)))
    return await desk.primitive(arguments.session, "generate", {"prompts": prompts, "sampling": sampling})


async def save(desk: Desk, arguments: a.Save) -> Json:
    """Write a checkpoint on the server. Returns `checkpoint`, its id, and its `size` in bytes. Next: more training, or
    close_session."""
    return await desk.primitive(arguments.session, "save", arguments.model_dump(exclude={"session"}))


async def load(desk: Desk, arguments: a.Load) -> Json:
    """Take the state of a checkpoint into this session; what it had trained since is gone. Next: forward_backward or
    generate."""
    return await desk.primitive(arguments.session, "load", arguments.model_dump(exclude={"session"}))


async def list_checkpoints(desk: Desk, arguments: a.ListCheckpoints) -> Json:
    """Your checkpoints, oldest first, of one session or all. Next: load, or new_session with the id of one."""
    return {"checkpoints": await asyncio.to_thread(desk.service.checkpoints, desk.caller, arguments.session)}


async def delete_checkpoint(desk: Desk, arguments: a.OfCheckpoint) -> Json:
    """Remove a checkpoint."""
    await asyncio.to_thread(desk.service.delete_checkpoint, desk.caller, arguments.checkpoint)
    return {"deleted": arguments.checkpoint}


async def wait_for_call(desk: Desk, arguments: a.OfCall) -> Json:
    """Wait up to 30 seconds for a call that was answered with `state: queued`, and return what its tool returns."""
    return await desk.finished(arguments.call, call_summary)


async def cancel_call(desk: Desk, arguments: a.OfCall) -> Json:
    """Stop a call that was answered with `state: queued`; its session is as it was before. Next: wait_for_call, or
    another call."""
    await asyncio.to_thread(desk.service.cancel, desk.caller, arguments.call)
    return {"cancelled": arguments.call, "next": "wait_for_call with this id says whether it was finished before"}


async def list_runs(desk: Desk, arguments: a.Nothing) -> Json:
    """Runs of recipes in the server's folder, oldest first: status, steps, model, method, the last and the best
    figures. Next: show_run."""
    runs.check_scope(desk.caller, started=desk.started)
    return await runs.apart(runs.all_runs)


async def show_run(desk: Desk, arguments: a.OfRun) -> Json:
    """A run: how it ended or how far it is, its recipe, its loss and evaluations as lists of step and value. Next:
    diagnose_run."""
    runs.check_scope(desk.caller, started=desk.started)
    return await runs.apart(runs.one_run, arguments.run)


async def diagnose_run(desk: Desk, arguments: a.OfRun) -> Json:
    """What a run's reports show to be wrong, each with what to do, and the end of its output. An empty list: nothing
    is."""
    runs.check_scope(desk.caller, started=desk.started)
    return await runs.apart(runs.diagnosis, arguments.run)


async def start_run(desk: Desk, arguments: a.StartRun) -> Json:
    """Begin to train what a recipe file in the server's folder describes. Returns at once. Next: show_run, until its
    status is no longer running."""
    runs.check_scope(desk.caller, started=desk.started)
    return await runs.apart(runs.start, desk.service.context, arguments.recipe, arguments.name, arguments.overrides)


async def stop_run(desk: Desk, arguments: a.OfRun) -> Json:
    """Ask a run to end: its last whole step is saved, and `ft resume` continues it. Next: show_run."""
    runs.check_scope(desk.caller, started=desk.started)
    return await runs.apart(runs.stop, desk.service.context, arguments.run)


# --- what an assistant reads ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tool:
    """A tool.

    Attributes:
        run: the function; its docstring says what it does, returns, and which tool comes next.
        reads: it changes nothing.
        destroys: it removes or replaces things for good.
    """

    run: Callable[[Desk, Any], Awaitable[Json]]
    takes: type[a.Arguments]
    reads: bool = False
    destroys: bool = False

    @property
    def name(self) -> str:
        """What it is called."""
        return self.run.__name__

    @property
    def about(self) -> str:
        """Its description for an assistant, in one line."""
        return " ".join((self.run.__doc__ or "").split())


TOOLS: Mapping[str, Tool] = {
    tool.name: tool
    for tool in (
        Tool(list_models, a.Nothing, reads=True),
        Tool(new_session, a.NewSession),
        Tool(list_sessions, a.Nothing, reads=True),
        Tool(close_session, a.OfSession, destroys=True),
        Tool(show_rows, a.Rows, reads=True),
        Tool(forward_backward, a.ForwardBackward),
        Tool(step, a.Step),
        Tool(forward, a.Forward),
        Tool(backward, a.Backward),
        Tool(zero_grad, a.OfSession),
        Tool(logprobs, a.Logprobs, reads=True),
        Tool(generate, a.Generate, reads=True),
        Tool(save, a.Save),
        Tool(load, a.Load, destroys=True),
        Tool(list_checkpoints, a.ListCheckpoints, reads=True),
        Tool(delete_checkpoint, a.OfCheckpoint, destroys=True),
        Tool(wait_for_call, a.OfCall, reads=True),
        Tool(cancel_call, a.OfCall, destroys=True),
        Tool(list_runs, a.Nothing, reads=True),
        Tool(show_run, a.OfRun, reads=True),
        Tool(diagnose_run, a.OfRun, reads=True),
        Tool(start_run, a.StartRun),
        Tool(stop_run, a.OfRun),
    )
}
"""A tool for each primitive, and for sessions and checkpoints."""
