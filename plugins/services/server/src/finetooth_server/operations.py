"""The primitives on one engine, from arguments to results in the log, all in JSON.

The effect of an operation depends only on the model and its arguments, so that the log can be replayed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from finetooth_hooks import (
    Completion,
    DataError,
    Datum,
    EngineError,
    Forward,
    Generated,
    Handle,
    Interrupted,
    Sampling,
    UserError,
)
from finetooth_hooks.compute.losses import LossSpec
from finetooth_hooks.continuous import RunningBatch
from finetooth_wire import wire

from finetooth_server.live import LiveModel

Arguments = Mapping[str, Any]
Operation = Callable[[LiveModel, Arguments, int], Any]

SUMS = {"weights": 1.0, "tokens": 1.0, "sequences": 1.0, "groups": 1.0, "none": 1.0}
"""Normalizers that make every loss a plain sum, as on the Tinker wire: `"normalizer": "sum"`."""

ROWS_AT_ONCE = 512
"""Rows of a call read between two turns of others."""

ROWWISE = ("logits", "hidden")
"""Outputs that are returned only at chosen positions, if the client chose some."""


@dataclass(frozen=True)
class Kind:
    """An operation of the log.

    Attributes:
        run: the function.
        scope: required scope of a key.
        changes: it changes the engine, so a replay must repeat it.
    """

    run: Operation
    scope: str = "train"
    changes: bool = True


def forward(model: LiveModel, arguments: Arguments, seq: int) -> Any:
    """Evaluate, and keep a handle for `backward` unless `keep` is false. Its id is the call's number."""
    data, loss = data_of(arguments, model.asked), _loss(model, arguments)
    result = model.engine.forward(
        data,
        loss,
        role=arguments.get("role") or "policy",
        returns=tuple(arguments.get("returns") or ("logprobs",)),
        normalizer=_normalizer(arguments),
    )
    result = _at_positions(result, arguments.get("positions"))
    if result.handle is None:
        return encoded(result, model.asked)
    if arguments.get("keep") is False:
        if "release" in model.engine.capabilities:
            model.engine.release(result.handle)
        return encoded(replace(result, handle=None), model.asked)
    model.handles[seq] = result.handle
    return encoded(result, model.asked, Handle(seq, result.handle.weights_version))


def backward(model: LiveModel, arguments: Arguments, seq: int) -> Any:
    """Accumulate the gradients of an earlier forward: of its loss, or from dL/dlogprob."""
    number = handle_number(arguments)
    handle = model.handles.get(number)
    if handle is None:
        raise EngineError(
            f"handle {arguments.get('handle')} is unknown, was used, or waited too long",
            action="call forward again for its backward",
        )
    grads = arguments.get("grads")
    if grads is not None:
        arrays = wire.sequence(grads, "grads")
        grads = [wire.decode_array(array, f"grads[{n}]", dtype="float32") for n, array in enumerate(arrays)]
    result = model.engine.backward(handle, grads, normalizer=_normalizer(arguments))
    del model.handles[number]
    return wire.encode_backward(result)


def forward_backward(model: LiveModel, arguments: Arguments, seq: int) -> Any:
    """Both at once, micro-batch by micro-batch."""
    data, loss = data_of(arguments, model.asked), _loss(model, arguments)
    if loss is None:
        raise DataError("loss", "forward_backward needs one", action="name a loss")
    result = model.engine.forward_backward(data, loss, normalizer=_normalizer(arguments))
    return encoded(result, model.asked)  # it is done: too late to stop


def step(model: LiveModel, arguments: Arguments, seq: int) -> Any:
    """One update."""
    metrics = arguments.get("metrics")
    settings = arguments.get("settings")
    if settings is None:
        result = model.engine.step(metrics=metrics)
    elif "step_settings" not in model.engine.capabilities:
        raise EngineError("this engine takes no numbers with a step", action="set them in the session's optimizer")
    else:
        result = model.engine.step(metrics=metrics, settings=wire.decode_step_settings(settings))
    model.handles.clear()
    return wire.encode_stepped(result)


def zero_grad(model: LiveModel, arguments: Arguments, seq: int) -> Any:
    """Drop accumulated gradients."""
    model.engine.zero_grad()
    return {}


def generate(model: LiveModel, arguments: Arguments, seq: int) -> Any:
    """Sample from the current weights."""
    prompts, sampling = prompts_of(arguments), wire.decode_sampling(arguments.get("sampling") or {})
    if "continuous" in model.engine.capabilities:
        generated = Generated(_generate_by_token(model.engine.running_batch(), prompts, sampling, model.written))
    else:
        generated = model.engine.generate(prompts, sampling)
    return wire.encode_generated(generated)


def _generate_by_token(
    batch: RunningBatch,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    tell: Callable[[int, int, float], None],
) -> list[list[Completion]]:
    """The result of `Engine.generate`, with each token reported."""
    counts = Counter[tuple[int, ...]]()
    requests = []
    for prompt in prompts:
        requests.append(batch.add(prompt, sampling, first=counts[tuple(prompt)]))
        counts[tuple(prompt)] += sampling.n
    place = {request: number for number, request in enumerate(requests)}
    completions: dict[tuple[int, int], Completion] = {}
    while len(batch):
        for token in batch.step():
            tell(place[token.request] * sampling.n + token.sample, token.token, token.logprob)
            if token.completion is not None:
                completions[token.request, token.sample] = token.completion
    return [[completions[request, sample] for sample in range(sampling.n)] for request in requests]


def logprobs(model: LiveModel, arguments: Arguments, seq: int) -> Any:
    """Score targets, and the likeliest tokens at each position if requested."""
    data, role, top = data_of(arguments, model.asked), arguments.get("role") or "policy", arguments.get("top_k") or 0
    reply: dict[str, Any] = {
        "logprobs": [wire.encode_array(values) for values in model.engine.logprobs(data, role=role)],
    }
    if top:
        reply["top_tokens"], reply["top_logprobs"] = [], []
        for datum in data:
            tokens, scores = likeliest(model, datum, int(top), role)
            reply["top_tokens"].append(wire.encode_array(tokens))
            reply["top_logprobs"].append(wire.encode_array(scores))
    return reply


def likeliest(model: LiveModel, datum: Datum, top: int, role: str = "policy") -> tuple[Any, Any]:
    """The `top` likeliest next tokens at each position: ids (N, top) int64 and log-probabilities (N, top) float32."""
    result = model.engine.forward([datum], role=role, returns=("logits",))
    if result.handle is not None and "release" in model.engine.capabilities:
        model.engine.release(result.handle)
    logits = np.asarray(result.outputs[0]["logits"], dtype=np.float64)
    top = min(top, logits.shape[-1])
    peak = logits.max(-1, keepdims=True)
    total = np.log(np.exp(logits - peak).sum(-1, keepdims=True)) + peak
    ids = np.argsort(-logits, axis=-1, kind="stable")[:, :top]
    return ids.astype(np.int64), (np.take_along_axis(logits, ids, -1) - total).astype(np.float32)


OPERATIONS: Mapping[str, Kind] = {
    "forward": Kind(forward, changes=False),
    "backward": Kind(backward),
    "forward_backward": Kind(forward_backward),
    "step": Kind(step),
    "zero_grad": Kind(zero_grad),
    "generate": Kind(generate, scope="sample", changes=False),
    "logprobs": Kind(logprobs, scope="sample", changes=False),
}
"""The primitives except `save` and `load`, which also use checkpoints."""


def execute(model: LiveModel, operation: str, arguments: Arguments, seq: int) -> Any:
    """The result of an operation, computed by the model's ranks if it has several."""
    if model.ranks is None:
        return OPERATIONS[operation].run(model, arguments, seq)
    result = model.ranks.run(operation, arguments, seq, stops=True, written=model.written)
    if operation == "forward" and result.get("handle") is not None:
        model.handles[seq] = Handle(seq, result["handle"]["weights_version"])
    elif operation == "backward":
        model.handles.pop(handle_number(arguments), None)
    elif operation == "step":
        model.handles.clear()
    return result


def handle_number(arguments: Arguments) -> int:
    """The number of the forward whose handle `backward` names; -1 if it names none."""
    named = arguments.get("handle")
    named = named.get("id") if isinstance(named, Mapping) else named
    return named if isinstance(named, int) else -1


def prompts_of(arguments: Arguments) -> list[list[int]]:
    """Prompts as lists of token ids.

    Raises:
        DataError: something else.
    """
    prompts = []
    for n, prompt in enumerate(wire.sequence(arguments.get("prompts"), "prompts")):
        ids = wire.decode_array(prompt, f"prompts[{n}]", dtype="int64")
        if ids.ndim != 1:
            raise DataError(f"prompts[{n}]", f"token ids have shape {list(ids.shape)}", action="send one list of ids")
        prompts.append([int(token) for token in ids])
    return prompts


def data_of(arguments: Arguments, asked: Callable[[], bool] = lambda: False) -> list[Datum]:
    """Examples of a call.

    Args:
        asked: called after each `ROWS_AT_ONCE` rows: yields to others, and says whether to stop.

    Raises:
        DataError: something else.
        Interrupted: it had to stop.
    """
    rows: Sequence[Any] = wire.sequence(arguments.get("data"), "data")
    data = []
    for n, row in enumerate(rows):
        if n and n % ROWS_AT_ONCE == 0 and asked():
            raise Interrupted("the call was to stop; it has begun with nothing")
        data.append(wire.decode_datum(row, f"data[{n}]"))
    return data


def encoded(result: Forward, asked: Callable[[], bool], handle: Handle | None = None) -> Any:
    """A result as JSON.

    Args:
        asked: called after each `ROWS_AT_ONCE` outputs: yields to others; finished work does not stop.
        handle: the client's handle, instead of the engine's.
    """
    reply = wire.encode_forward(replace(result, outputs=()), handle)
    for n, output in enumerate(result.outputs):
        if n and n % ROWS_AT_ONCE == 0:
            asked()
        reply["outputs"].append({name: wire.encode_array(values) for name, values in output.items()})
    return reply


def _loss(model: LiveModel, arguments: Arguments) -> LossSpec | None:
    pick = arguments.get("loss")
    return None if pick is None else model.loss(pick)


def _normalizer(arguments: Arguments) -> Mapping[str, float] | None:
    normalizer = arguments.get("normalizer")
    if normalizer is None or normalizer == "step":
        return None
    if normalizer == "sum":
        return SUMS
    counts = {
        name: wire.number(value, f"normalizer.{name}") for name, value in wire.mapping(normalizer, "normalizer").items()
    }
    for name, value in counts.items():
        if value <= 0:
            raise DataError(f"normalizer.{name}", f"{value} is not above 0", action="give the total of the whole step")
    return {"none": 1.0, **counts}


def _at_positions(result: Forward, positions: Any) -> Forward:
    """Rows of large outputs at the client's positions."""
    if positions is None:
        return result
    chosen = wire.sequence(positions, "positions")
    if len(chosen) != len(result.outputs):
        raise DataError("positions", f"{len(chosen)} lists for {len(result.outputs)} data", action="give one per datum")
    outputs = []
    for n, (of, rows) in enumerate(zip(result.outputs, chosen, strict=True)):
        wanted = wire.decode_array(rows, f"positions[{n}]", dtype="int64")
        longest = min((len(values) for name, values in of.items() if name.startswith(ROWWISE)), default=0)
        if wanted.ndim != 1 or (wanted.size and (wanted.min() < 0 or wanted.max() >= longest)):
            raise UserError(
                f"positions[{n}]: some lie outside 0 to {longest - 1}", action="choose positions of the datum"
            )
        outputs.append({name: values[wanted] if name.startswith(ROWWISE) else values for name, values in of.items()})
    return replace(result, outputs=tuple(outputs))
