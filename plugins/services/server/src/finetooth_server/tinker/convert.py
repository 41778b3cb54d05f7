"""Converts between the Tinker protocol's protobuf and the service.

The messages come from the public client's package. Inputs in this protocol are aligned with their targets, all losses
are plain sums over tokens, and log-probabilities are returned at every target, with any weight.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from finetooth_hooks import Chunk, DataError, Datum, ImageChunk, TokenChunk, UserError
from finetooth_wire import wire
from numpy.typing import NDArray
from tinker.proto import tinker_public_pb2 as proto

from finetooth_server.tinker.requests import rows_of_cells

FIELDS = {"logprobs": "old_logprobs", "advantages": "advantages", "weights": "weights"}
"""Names of loss inputs in the service and in the protocol, if they differ."""

CELLS = 2**25
"""Most cells of all sparse tensors of one request together."""

_TYPES: Mapping[int, str] = {
    proto.DTYPE_FLOAT32: "<f4",
    proto.DTYPE_INT64: "<i8",
    proto.DTYPE_INT32: "<i4",
}


UNKNOWN_LOSSES = frozenset({"gspo", "stable_reinforce"})
"""Losses that the client names without defining them."""

Opener = Callable[[bytes, str, int, str], ImageChunk]
"""From an image's bytes, format, expected tokens (0: unknown) and place in the request to the model's input."""


def forward_backward_call(message: Any, images: Opener) -> tuple[str, dict[str, Any]]:
    """The operation and its arguments.

    Args:
        images: opens the images among the inputs.

    Raises:
        DataError: an example cannot be read, or the server does not offer the client's loss.
    """
    if message.loss_fn in UNKNOWN_LOSSES:
        raise DataError(
            f"loss {message.loss_fn!r}",
            "not offered, what it computes is not documented",
            action="choose cross_entropy, importance_sampling, ppo, cispo or dro, or call forward_backward_custom",
        )
    room = _Room()
    data = [wire.encode_datum(_datum(datum, f"data[{n}]", room, images)) for n, datum in enumerate(message.data)]
    config: dict[str, Any] = dict(message.loss_fn_config.items())
    for name, value in message.loss_fn_config_v2.items():
        config[name] = value.text if value.WhichOneof("value") == "text" else value.number
    arguments: dict[str, Any] = {"data": data, "loss": {"name": message.loss_fn, **config}, "normalizer": "sum"}
    if not message.forward_only:
        return "forward_backward", arguments
    return "forward", {**arguments, "keep": False}


def forward_backward_result(result: Mapping[str, Any]) -> bytes:
    """ForwardBackwardOutput: log-probabilities by example, and the loss."""
    answer = proto.ForwardBackwardOutput(loss_fn_output_type="ArrayRecord")
    answer.metrics["loss:sum"] = result["loss"]
    for name, value in result["metrics"].items():
        answer.metrics[f"{name.replace(':', '_')}:mean"] = value
    arrays = [wire.decode_array(of["logprobs"], "logprobs", dtype="float32") for of in result["outputs"]]
    record = answer.loss_fn_outputs.add(num_datums=len(arrays))
    if arrays:
        sizes = np.cumsum([0, *(array.nbytes for array in arrays)], dtype="<i8")
        tensor = record.fields["logprobs"]
        tensor.data = b"".join(np.ascontiguousarray(array, "<f4").tobytes() for array in arrays)
        tensor.offsets = sizes.tobytes()
        tensor.dtype = proto.DTYPE_FLOAT32
        tensor.trailing_shape.extend(arrays[0].shape[1:])
    content: bytes = answer.SerializeToString()
    return content


def sample_result(result: Mapping[str, Any]) -> bytes:
    """SampleResponse: sequences, and the prompt's requested results."""
    answer = proto.SampleResponse()
    for completion in result["completions"]:
        sequence = answer.sequences.add(
            stop_reason=proto.STOP_REASON_STOP if completion["stop"] == "stop" else proto.STOP_REASON_LENGTH,
            tokens=np.asarray(completion["tokens"], "<i4").tobytes(),
            logprobs=np.asarray(completion["logprobs"], "<f4").tobytes(),
        )
        if "top_tokens" in completion:
            _write_top(sequence.topk_sampled_logprobs, completion)
    if "prompt_logprobs" in result:
        answer.prompt_logprobs = wire.decode_array(result["prompt_logprobs"], "").astype("<f4").tobytes()
    if "top_tokens" in result:
        _write_top(answer.topk_prompt_logprobs, result)
    if "alternatives" in result:
        _write(answer.prompt_alt_tokens.tokens, result["alternatives"]["tokens"], "<i4")
        _write(answer.prompt_alt_tokens.logprobs, result["alternatives"]["logprobs"], "<f4")
    if "targets" in result:
        _write(answer.target_prompt_logprobs, result["targets"], "<f4", result["layout"])
    content: bytes = answer.SerializeToString()
    return content


def _write_top(message: Any, of: Mapping[str, Any]) -> None:
    ids = wire.decode_array(of["top_tokens"], "")
    message.token_ids = ids.astype("<i4").tobytes()
    message.logprobs = wire.decode_array(of["top_logprobs"], "").astype("<f4").tobytes()
    message.length, message.k = ids.shape


def _write(message: Any, array: Any, dtype: str, layout: Mapping[str, Any] | None = None) -> None:
    """An array as a tensor in the requested layout."""
    values = wire.decode_array(array, "")
    message.dtype = next(number for number, name in _TYPES.items() if name == dtype)
    message.shape.extend(values.shape if layout is None else layout["shape"])
    content = values.astype(dtype).tobytes()
    if layout is None or layout.get("sparse_crow_indices") is None:
        message.dense = content
        return
    message.sparse_csr.values = content
    message.sparse_csr.crow_indices = np.asarray(layout["sparse_crow_indices"], "<i8").tobytes()
    message.sparse_csr.col_indices = np.asarray(layout["sparse_col_indices"], "<i8").tobytes()


def read_message(content: bytes) -> Any:
    """A ForwardBackwardRequest.

    Raises:
        UserError: the bytes are invalid.
    """
    message = proto.ForwardBackwardRequest()
    try:
        message.ParseFromString(content)
    except Exception as error:  # the library's own error types differ between its implementations
        raise UserError("the body is not a ForwardBackwardRequest", action="send protobuf") from error
    return message


class _Room:
    """Limits sparse tensors of one message: otherwise a few bytes could name matrices that fill the memory."""

    def __init__(self) -> None:
        self._cells = CELLS

    def take(self, shape: Sequence[int], where: str) -> None:
        """Count the cells of a sparse tensor.

        Raises:
            DataError: the tensor is not a matrix, or has too many cells.
        """
        if len(shape) != 2:
            raise DataError(where, f"a sparse tensor of shape {list(shape)}", action="send a matrix")
        self._cells -= shape[0] * shape[1]
        if self._cells < 0:
            raise DataError(
                where, f"sparse tensors of more than {CELLS:,} cells in one request", action="send fewer data at once"
            )


def _datum(message: Any, where: str, room: _Room, images: Opener) -> Datum:
    chunks: list[Chunk] = []
    for n, chunk in enumerate(message.model_input):
        kind, at = chunk.WhichOneof("chunk"), f"{where}.model_input[{n}]"
        if kind == "image":
            chunks.append(images(chunk.image.data, chunk.image.format, chunk.image.expected_tokens, at))
            continue
        if kind != "encoded_text":
            raise DataError(at, f"{kind} is not offered, no model here reads it", action="send text and images")
        ids = _whole(chunk.encoded_text.tokens, "<i4", at)
        chunks.append(TokenChunk(ids.astype(np.int64)))
    inputs = {name: _tensor(tensor, f"{where}.{name}", room) for name, tensor in message.loss_fn_inputs.items()}
    if "target_tokens" not in inputs:
        raise DataError(where, "it has no target_tokens", action="send them among the loss_fn_inputs")
    targets = inputs.pop("target_tokens").astype(np.int64)
    fields = {FIELDS.get(name, name): values.astype(np.float32) for name, values in inputs.items()}
    for name, values in fields.items():
        if not np.isfinite(values).all():
            raise DataError(f"{where}.{name}", "it holds a number that is not finite", action="send finite numbers")
    length = sum(len(chunk) for chunk in chunks)
    try:
        return Datum(tuple(chunks), targets, mask=np.ones(length, np.bool_), fields=fields)
    except ValueError as error:
        raise DataError(where, str(error), action="give every input a value for each position") from error


def _tensor(message: Any, where: str, room: _Room) -> NDArray[Any]:
    dtype = _TYPES.get(message.dtype)
    if dtype is None:
        raise DataError(where, f"type {message.dtype} of a tensor", action="send float32 or int64")
    shape = [int(n) for n in message.shape]
    if any(n < 0 for n in shape):
        raise DataError(where, f"shape {shape}", action="send a shape without negative numbers")
    if message.WhichOneof("encoding") == "sparse_csr":
        room.take(shape, where)
        return _densified(message.sparse_csr, dtype, shape, where)
    values = _whole(message.dense, dtype, where)
    if not shape:
        return values
    if int(np.prod(shape, dtype=object)) != values.size:
        raise DataError(where, f"{values.size} values for shape {shape}", action="send as many as the shape holds")
    return values.reshape(shape)


def _densified(message: Any, dtype: str, shape: Sequence[int], where: str) -> NDArray[Any]:
    values = _whole(message.values, dtype, where)
    starts, columns = (_whole(part, "<i8", where) for part in (message.crow_indices, message.col_indices))
    rows = rows_of_cells(starts, columns, len(values), shape, where)
    dense = np.zeros(shape, values.dtype)
    dense[rows, columns] = values
    return dense


def _whole(content: bytes, dtype: str, where: str) -> NDArray[Any]:
    if len(content) % np.dtype(dtype).itemsize:
        raise DataError(where, f"{len(content)} bytes are not a whole number of values", action="send whole values")
    return np.frombuffer(content, dtype)
