"""The engine's data and results as JSON, for messages between a server and its clients.

Every value comes back as it was, to the bit: arrays travel as base64 of their bytes, little-endian, with their type and
shape. A person may write an array as nested lists instead.

    {"dtype": "float32", "shape": [3], "base64": "..."}     or     [0.5, 1.0, 0.0]
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
from finetooth_hooks.compute.loss_totals import LossTotals
from finetooth_hooks.compute.losses import Contribution, Metric
from finetooth_hooks.data.datum import Chunk, Datum, MediumChunk, TokenChunk
from finetooth_hooks.data.examples import CALLED, MediumKind
from finetooth_hooks.engine import Backward, Forward, Handle, Stepped, StepSettings
from finetooth_hooks.errors import DataError
from finetooth_hooks.sampling import Completion, Generated, Sampling, ShownPrompt
from finetooth_toolbox.messages.media import CHUNKS
from numpy.typing import NDArray

Json = Any
"""A JSON value."""

DTYPES = ("float32", "float64", "float16", "int64", "int32", "bool")
"""Types of arrays that may travel."""
READ = (*DTYPES, "bfloat16")  # NumPy has no bfloat16: a number is read as the float32 that is equal to it

FORMATS: Mapping[MediumKind, tuple[str, ...]] = {"image": ("", "png", "jpeg"), "audio": ("", "wav"), "video": ("",)}
"""What an encoded picture, sound or video may be called; empty leaves it to who decodes it."""

OFF_AT_ZERO = ("min_p", "presence_penalty", "frequency_penalty", "logit_bias")
Array = NDArray[Any]


# --- arrays -----------------------------------------------------------------------------------------------------------


def encode_array(values: Array) -> Json:
    """An array as JSON.

    Raises:
        ValueError: its type is none of `DTYPES`.
    """
    values = np.asarray(values)
    if values.dtype.name not in DTYPES:
        raise ValueError(f"arrays of {values.dtype} do not travel; allowed are {', '.join(DTYPES)}")
    content = np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("<")).tobytes()
    return {
        "dtype": values.dtype.name,
        "shape": list(values.shape),
        "base64": base64.b64encode(content).decode("ascii"),
    }


def decode_array(value: Json, where: str, *, dtype: str | None = None) -> Array:
    """Decode the result of `encode_array`, an array of `READ`, or nested lists of numbers.

    Args:
        where: the field, for messages.
        dtype: the type that nested lists, and arrays of another type, become.

    Raises:
        DataError: it is neither, or its bytes do not fill its shape.
    """
    if isinstance(value, Mapping):
        array = _from_bytes(value, where)
    elif isinstance(value, list):
        try:
            array = np.asarray(value)
        except ValueError as error:
            raise DataError(where, "its lists are not of one length", action="send a rectangle of numbers") from error
        if array.size == 0:
            array = array.astype(dtype or "float64")
    else:
        raise DataError(where, f"{type(value).__name__} is not an array", action="send a list of numbers")
    if array.dtype.kind not in "fibu":
        raise DataError(where, "it holds something other than numbers", action="send numbers")
    if dtype is None:
        return array
    if dtype.startswith("int") and array.dtype.kind == "f":
        raise DataError(where, "it holds numbers that are not whole", action="send whole numbers")
    return array.astype(dtype)


def _from_bytes(value: Mapping[str, Any], where: str) -> Array:
    name, shape, text = value.get("dtype"), value.get("shape"), value.get("base64")
    if name not in READ:
        raise DataError(where, f"dtype is {name!r}", action=f"use one of {', '.join(READ)}")
    whole = isinstance(shape, list) and all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in shape)
    if not whole:
        raise DataError(where, f"shape is {shape!r}", action="give a list of whole numbers")
    assert isinstance(shape, list)
    try:
        content = base64.b64decode(text if isinstance(text, str) else "!", validate=True)
    except (binascii.Error, ValueError) as error:
        raise DataError(where, "its base64 cannot be read", action="send the bytes in base64") from error
    dtype = np.dtype("uint16" if name == "bfloat16" else name).newbyteorder("<")
    expected = dtype.itemsize
    for n in shape:
        expected *= n
    if len(content) != expected:
        raise DataError(
            where, f"{len(content)} bytes for {name} of shape {shape}", action=f"send {expected} bytes for it"
        )
    if name == "bool" and not set(content) <= {0, 1}:
        raise DataError(where, "bytes of bools are 0 or 1", action="send such")
    flat = np.frombuffer(content, dtype)  # of a bfloat16: the upper half of a float32
    flat = (flat.astype(np.uint32) << 16).view(np.float32) if name == "bfloat16" else flat.astype(np.dtype(name))
    return flat.reshape(shape)


# --- data -------------------------------------------------------------------------------------------------------------


def encode_datum(datum: Datum) -> Json:
    """A datum as JSON, without default values."""
    encoded: dict[str, Json] = {
        "input": [_encode_chunk(chunk) for chunk in datum.input],
        "targets": encode_array(datum.targets),
        "mask": encode_array(datum.mask),
    }
    if datum.fields:
        encoded["fields"] = {name: encode_array(values) for name, values in datum.fields.items()}
    if datum.scalars:
        encoded["scalars"] = {name: float(value) for name, value in datum.scalars.items()}
    for name in ("positions", "parents"):
        values = getattr(datum, name)
        if values is not None:
            encoded[name] = encode_array(values)
    plain = {"group": datum.group, "id": datum.id or None, "place": datum.place}
    return {**encoded, **{name: value for name, value in plain.items() if value is not None}}


def decode_datum(value: Json, where: str) -> Datum:
    """Decode the result of `encode_datum`. Instead of `input` it may have `tokens`, a list of ids.

    Args:
        where: names the datum in messages, `data[3]`.

    Raises:
        DataError: the value is not a datum, or its lengths disagree.
    """
    value = mapping(value, where)
    known = {"input", "tokens", "targets", "mask", "fields", "scalars", "positions", "parents", "group", "id", "place"}
    for name in sorted(set(value) - known):
        raise DataError(where, f"unknown key {name!r}", action=f"a datum has {', '.join(sorted(known))}")
    if ("input" in value) == ("tokens" in value):
        raise DataError(where, "it needs one of 'input' and 'tokens'", action="send tokens, a list of token ids")
    if "tokens" in value:
        chunks: tuple[Chunk, ...] = (TokenChunk(_ids(value["tokens"], f"{where}.tokens")),)
    else:
        entries = sequence(value["input"], f"{where}.input")
        chunks = tuple(_decode_chunk(chunk, f"{where}.input[{n}]") for n, chunk in enumerate(entries))
    if "targets" not in value:
        raise DataError(where, "it has no 'targets'", action="send targets, for each token the one after it")
    optional: dict[str, Any] = {
        name: decode_array(value[name], f"{where}.{name}", dtype=dtype)
        for name, dtype in (("mask", "bool"), ("positions", "int64"), ("parents", "int64"))
        if value.get(name) is not None
    }
    fields = mapping(value.get("fields") or {}, f"{where}.fields")
    scalars = mapping(value.get("scalars") or {}, f"{where}.scalars")
    group, name = value.get("group"), value.get("id", "")
    if not (group is None or isinstance(group, str)) or not isinstance(name, str):
        raise DataError(where, "group and id are texts", action="send texts")
    if not ((place := value.get("place")) is None or (type(place) is int and place >= 0)):
        raise DataError(where, f"place is {place!r}", action="send the number of the datum in its step, from 0")
    try:
        return Datum(
            chunks,
            decode_array(value["targets"], f"{where}.targets", dtype="int64"),
            fields={key: _floats(array, f"{where}.fields.{key}") for key, array in fields.items()},
            scalars={key: number(scalar, f"{where}.scalars.{key}") for key, scalar in scalars.items()},
            group=group,
            id=name,
            place=place,
            **optional,
        )
    except ValueError as error:
        raise DataError(where, str(error), action="give every array a value for each position") from error


def encode_prompt(prompt: Sequence[int]) -> dict[str, Json]:
    """A prompt as JSON: its ids as `prompt`, and its images, sounds and videos, if it shows some, as `media`."""
    encoded: dict[str, Json] = {"prompt": [int(token) for token in prompt]}
    if isinstance(prompt, ShownPrompt):
        encoded["media"] = [[start, _encode_chunk(chunk)] for start, chunk in prompt.media]
    return encoded


def decode_prompt(value: Mapping[str, Json]) -> Sequence[int]:
    """What `encode_prompt` wrote, among other things.

    Raises:
        DataError: an image, sound or video cannot be read.
    """
    ids, media = value["prompt"], value.get("media")
    if not media:
        return cast("Sequence[int]", ids)
    placed = [(start, _decode_chunk(chunk, f"media[{n}]")) for n, (start, chunk) in enumerate(media)]
    return ShownPrompt(tuple(ids), tuple((start, chunk) for start, chunk in placed if isinstance(chunk, MediumChunk)))


def _encode_chunk(chunk: Chunk) -> Json:
    if isinstance(chunk, TokenChunk):
        return {"tokens": encode_array(chunk.tokens)}
    medium: dict[str, Json] = {
        chunk.kind: base64.b64encode(chunk.data).decode("ascii"),
        "format": chunk.format,
        "length": chunk.length,
    }
    if chunk.tokens is not None:
        medium["tokens"] = encode_array(chunk.tokens)
    return medium


def _decode_chunk(value: Json, where: str) -> Chunk:
    value = mapping(value, where)
    kind = next((name for name in CHUNKS if name in value), None)
    if kind is None:
        return TokenChunk(_ids(value.get("tokens"), f"{where}.tokens"))
    try:
        data = base64.b64decode(value[kind], validate=True)
    except (binascii.Error, ValueError, TypeError) as error:
        raise DataError(f"{where}.{kind}", "its base64 cannot be read", action="send the bytes of its file") from error
    format_, length = value.get("format", ""), value.get("length")
    if format_ not in FORMATS[kind] or not isinstance(length, int) or isinstance(length, bool) or length < 1:
        known = ", ".join(FORMATS[kind][1:]) or "empty"
        raise DataError(where, f"{CALLED[kind]} needs a format ({known}) and a length in tokens", action="send both")
    tokens = None if value.get("tokens") is None else _ids(value["tokens"], f"{where}.tokens")
    try:
        return CHUNKS[kind](data, format_, length, tokens)
    except ValueError as error:
        raise DataError(where, str(error), action="send one placeholder for each token of its length") from error


def _ids(value: Json, where: str) -> Array:
    ids = decode_array(value, where, dtype="int64")
    if ids.ndim != 1:
        raise DataError(where, f"token ids have shape {list(ids.shape)}", action="send one list of ids")
    return ids


def _floats(value: Json, where: str) -> Array:
    array = decode_array(value, where)
    array = array if array.dtype.kind == "f" else array.astype("float32")
    if not np.isfinite(array).all():
        raise DataError(where, "it holds a number that is not finite", action="send finite numbers")
    # lists are float64 to NumPy; losses compute in float32, as for data that a method makes
    return array.astype("float32") if isinstance(value, list) else array


# --- results ----------------------------------------------------------------------------------------------------------


def encode_forward(result: Forward, handle: Handle | None = None) -> Json:
    """Result of `forward` or `forward_backward`.

    Args:
        handle: what the client is to call it, in place of the engine's own.
    """
    handle = handle or result.handle
    return {
        "outputs": [{name: encode_array(values) for name, values in of.items()} for of in result.outputs],
        "loss": result.loss,
        "components": dict(result.components),
        "metrics": dict(result.metrics),
        "tokens": result.tokens,
        "padded": result.padded,
        "targets": result.targets,
        "micro_batches": result.micro_batches,
        "handle": None if handle is None else {"id": handle.id, "weights_version": handle.weights_version},
        "flops": result.flops,
        "totals": None if result.totals is None else _encode_totals(result.totals),
    }


def decode_forward(value: Json) -> Forward:
    """Decode the result of `encode_forward`."""
    outputs = tuple({k: decode_array(a, f"outputs.{k}") for k, a in of.items()} for of in value["outputs"])
    handle = value.get("handle")
    rest = {k: value[k] for k in ("loss", "components", "metrics", "tokens", "padded", "targets", "micro_batches")}
    return Forward(
        outputs,
        **rest,
        handle=None if handle is None else Handle(**handle),
        flops=value["flops"],
        totals=None if value["totals"] is None else _decode_totals(value["totals"]),
    )


def _encode_totals(totals: LossTotals) -> Json:
    return {
        "loss": totals.loss,
        "contributions": {
            name: {"total": _real(part.total), "per": part.per, "weight": part.weight}
            for name, part in totals.contributions.items()
        },
        "metrics": {
            name: {"total": _real(metric.total), "count": _real(float(metric.count)), "reduce": metric.reduce}
            for name, metric in totals.metrics.items()
        },
    }


def _decode_totals(value: Json) -> LossTotals:
    contributions = {
        name: Contribution(float(part["total"]), part["per"], part["weight"])
        for name, part in value["contributions"].items()
    }
    metrics = {name: Metric(float(m["total"]), float(m["count"]), m["reduce"]) for name, m in value["metrics"].items()}
    return LossTotals(value["loss"], contributions, metrics)


def encode_backward(result: Backward) -> Json:
    """Result of `backward`; a norm that is not finite is a text."""
    return {"grad_norm": _real(result.grad_norm), "overflow": result.overflow, "flops": result.flops}


def decode_backward(value: Json) -> Backward:
    """Decode the result of `encode_backward`."""
    return Backward(float(value["grad_norm"]), value["overflow"], value["flops"])


def encode_stepped(result: Stepped) -> Json:
    """Result of `step`."""
    return {
        "step": result.step,
        "learning_rate": result.learning_rate,
        "grad_norm": _real(result.grad_norm),
        "skipped": result.skipped,
    }


def decode_stepped(value: Json) -> Stepped:
    """Decode the result of `encode_stepped`."""
    return Stepped(value["step"], value["learning_rate"], float(value["grad_norm"]), value["skipped"])


def encode_completion(result: Completion) -> Json:
    """A completion."""
    return {
        "tokens": list(result.tokens),
        "logprobs": list(result.logprobs),
        "text": result.text,
        "stop": result.stop,
        "weights_version": result.weights_version,
    }


def encode_generated(result: Generated) -> Json:
    """The completions of several prompts."""
    return {"completions": [list(map(encode_completion, of)) for of in result], "flops": result.flops}


def decode_generated(value: Json) -> Generated:
    """Decode the result of `encode_generated`."""
    completions = [[decode_completion(completion) for completion in of] for of in value["completions"]]
    return Generated(completions, float(value.get("flops", 0.0)))


def decode_completion(value: Json) -> Completion:
    """Decode the result of `encode_completion`."""
    return Completion(
        tuple(value["tokens"]), tuple(value["logprobs"]), value["text"], value["stop"], value["weights_version"]
    )


# --- settings ---------------------------------------------------------------------------------------------------------


def encode_sampling(sampling: Sampling) -> Json:
    """How to sample."""
    return {
        "max_tokens": sampling.max_tokens,
        "temperature": sampling.temperature,
        "top_k": sampling.top_k,
        "top_p": sampling.top_p,
        "n": sampling.n,
        "stop": list(sampling.stop),
        "stop_ids": None if sampling.stop_ids is None else list(sampling.stop_ids),
        "seed": sampling.seed,
        **({} if sampling.form is None else dict([sampling.form])),
        **({} if sampling.repetition_penalty == 1 else {"repetition_penalty": sampling.repetition_penalty}),
        **{name: value for name in OFF_AT_ZERO if (value := getattr(sampling, name))},
    }


def decode_sampling(value: Json) -> Sampling:
    """Decode the result of `encode_sampling`; missing values have their defaults."""
    settings = dict(mapping(value, "sampling"))
    for name, convert in (("stop", tuple), ("stop_ids", tuple), ("logit_bias", lambda all_: tuple(map(tuple, all_)))):
        if settings.get(name) is not None:
            settings[name] = convert(settings[name])
    try:
        return Sampling(**settings)
    except TypeError as error:
        raise DataError("sampling", str(error), action="use the settings of the reference") from error


def encode_step_settings(settings: StepSettings) -> Json:
    """Numbers of one step."""
    return {
        "learning_rate": settings.learning_rate,
        "max_grad_norm": settings.max_grad_norm,
        "optimizer": {k: list(v) if isinstance(v, tuple) else v for k, v in settings.optimizer.items()},
    }


_BOUNDS: Mapping[str, tuple[float, float | None]] = {
    "learning_rate": (0.0, None),
    "max_grad_norm": (0.0, None),
    "eps": (0.0, None),
    "weight_decay": (0.0, None),
    "betas": (0.0, 1.0),
}
"""Least value of a step's numbers, and what they must stay below."""


def _check_bounds(value: Json, name: str, low: float, high: float | None) -> None:
    """
    Raises:
        DataError: no finite number, or one that no optimizer can step with.
    """
    for entry in value if isinstance(value, list | tuple) else (value,):
        bounded = number(entry, name)
        if bounded < low:
            raise DataError(name, f"{bounded:g} is below {low:g}", action=f"choose {low:g} or more")
        if high is not None and bounded >= high:
            raise DataError(name, f"{bounded:g} is not below {high:g}", action=f"choose less than {high:g}")


def decode_step_settings(value: Json) -> StepSettings:
    """Decode the result of `encode_step_settings`.

    Raises:
        DataError: something else, or numbers that no optimizer can step with.
    """
    settings = mapping(value, "settings")
    for name in sorted(set(settings) - {"learning_rate", "max_grad_norm", "optimizer"}):
        raise DataError("settings", f"unknown key {name!r}", action="give learning_rate, max_grad_norm, optimizer")
    options = mapping(settings.get("optimizer") or {}, "settings.optimizer")
    for name, value in (*settings.items(), *options.items()):
        low, high = _BOUNDS.get(name, (None, None))
        if low is not None and value is not None:
            _check_bounds(value, name, low, high)
    return StepSettings(
        **{k: None if settings.get(k) is None else number(settings[k], k) for k in ("learning_rate", "max_grad_norm")},
        optimizer={
            k: tuple(number(entry, k) for entry in v) if isinstance(v, list | tuple) else number(v, k)
            for k, v in options.items()
        },
    )


# --- checks -----------------------------------------------------------------------------------------------------------


def mapping(value: Json, where: str) -> Mapping[str, Any]:
    """The value, a mapping by names.

    Raises:
        DataError: it is none.
    """
    if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
        raise DataError(where, f"{type(value).__name__} is not a mapping", action="send a JSON object")
    return value


def sequence(value: Json, where: str) -> Sequence[Any]:
    """The value, a list.

    Raises:
        DataError: it is none.
    """
    if not isinstance(value, list | tuple):
        raise DataError(where, f"{type(value).__name__} is not a list", action="send a JSON list")
    return value


def number(value: Json, where: str) -> float:
    """The value, a finite number.

    Raises:
        DataError: it is none.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < float("inf"):
        raise DataError(where, f"{value!r} is not a finite number", action="send one")
    return float(value)


def _real(value: float) -> float | str:
    """JSON has no infinity; `float` reads the text."""
    return value if abs(value) < float("inf") else str(value)
