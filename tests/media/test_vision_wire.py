"""Images that a client of the Tinker wire sends: they become the tokens and the numbers that the same rows have in a
run here."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import finetooth
import numpy as np
import pytest
from finetooth_core.cli.start_options import StartOptions
from finetooth_core.cli.state import State
from finetooth_hooks import DataError, Datum, ImageChunk
from finetooth_wire import wire

pytest.importorskip("tinker")

from finetooth_server.service import Service
from finetooth_server.settings import Settings
from finetooth_server.tinker import convert
from tinker.proto import tinker_public_pb2 as proto

ROWS = (0, 16, 17)
"""A photograph, two images in two turns, and no image."""


def message_of(data: list[Datum], expected: int | None = None) -> Any:
    """The client's request: an image as its file, text as ids."""
    message = proto.ForwardBackwardRequest(loss_fn="cross_entropy", forward_only=True)
    for datum in data:
        sent = message.data.add()
        for chunk in datum.input:
            one = sent.model_input.add()
            if isinstance(chunk, ImageChunk):
                one.image.data, one.image.format = chunk.data, chunk.format or "png"
                one.image.expected_tokens = len(chunk) if expected is None else expected
            else:
                one.encoded_text.tokens = chunk.tokens.astype("<i4").tobytes()
        targets = sent.loss_fn_inputs["target_tokens"]
        targets.dense, targets.dtype = datum.targets.astype("<i8").tobytes(), proto.DTYPE_INT64
        targets.shape.append(len(datum))
    return message


@pytest.mark.slow
def test_images_of_the_wire_train_as_those_of_rows(vision_model: Path, captions: Path, tmp_path: Path) -> None:
    recipe = {
        "model": str(vision_model),
        "adapter": {"name": "lora", "rank": 4},
        "optimizer": "adamw",
        "schedule": "constant",
        "train": {"max_length": 1024, "precision": "fp32", "seed": 1},
    }
    job = finetooth.session(
        {**recipe, "data": {"train": str(captions), "cache": "off"}, "train": {**recipe["train"], "max_steps": 1}}
    ).job
    how = job.context.data.prepared_as["train"]
    rows = job.context.prepare("train", how.rendering, how.limit).data
    data = [replace(rows[n], mask=np.ones(len(rows[n]), np.bool_), fields={}) for n in ROWS]
    state = State(StartOptions())
    want = state.engine(recipe).logprobs(data)
    service = Service(state, Settings(tmp_path / "server", {"eye": recipe}, keyless=True))
    service.start()
    try:
        caller = service.keys.caller(None, keyless=True)

        def result(call: Any) -> Any:
            done = asyncio.run(service.log.wait(caller, call.id, 60.0))
            assert done.state == "done", (done.state, done.error)
            return done.result

        made = service.create_model(caller, service.open_session(caller), "eye", {}, face="test")
        result(made)
        images = partial(service.images.chunk, "eye")
        operation, arguments = convert.forward_backward_call(message_of(data), images)
        read = [wire.decode_datum(one, "") for one in arguments["data"]]
        for ours, theirs in zip(data, read, strict=True):
            assert ours.placeholder_tokens.tolist() == theirs.placeholder_tokens.tolist()
        found = result(service.submit(caller, made.queue, operation, arguments, face="test"))["outputs"]
        for one, of in zip(want, found, strict=True):
            np.testing.assert_allclose(wire.decode_array(of["logprobs"], ""), one, atol=1e-5)
        with pytest.raises(DataError, match="and 3 were expected"):
            convert.forward_backward_call(message_of(data[:1], expected=3), images)
        broken = message_of(data[:1])
        next(one for one in broken.data[0].model_input if one.WhichOneof("chunk") == "image").image.data = b"no image"
        with pytest.raises(DataError, match="image"):
            convert.forward_backward_call(broken, images)
    finally:
        service.stop()
