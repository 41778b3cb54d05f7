"""What travels comes back as it was, to the bit; what is no datum is refused in one line."""

from __future__ import annotations

import base64
import json
from typing import Any

import numpy as np
import pytest
import torch
from finetooth_hooks import (
    Completion,
    Contribution,
    DataError,
    Datum,
    Forward,
    Handle,
    ImageChunk,
    LossTotals,
    Metric,
    Sampling,
    TokenChunk,
)
from finetooth_hooks.engine import Backward, Stepped, StepSettings
from finetooth_wire import wire
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays


def there_and_back(value: Any) -> Any:
    """Through a JSON text, as a client sends it."""
    return json.loads(json.dumps(value, allow_nan=False))


@given(
    arrays.arrays(
        dtype=st.sampled_from([np.dtype(name) for name in wire.DTYPES]),
        shape=arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
    )
)
def test_every_bit_of_an_array_comes_back(values: np.ndarray) -> None:
    back = wire.decode_array(there_and_back(wire.encode_array(values)), "x")
    assert back.dtype == values.dtype and back.shape == values.shape
    assert back.tobytes() == np.ascontiguousarray(values).tobytes()  # NaN and -0.0 too


def test_every_bfloat16_is_read_as_the_number_that_it_is() -> None:
    """All 65,536 of them, against torch's own conversion: subnormals, infinities, -0.0 and the bits of NaN too."""
    bits = torch.arange(2**16, dtype=torch.int32).to(torch.uint16).reshape(256, 256)
    values = bits.view(torch.bfloat16)
    content = base64.b64encode(bits.numpy().astype("<u2").tobytes()).decode()
    sent = {"dtype": "bfloat16", "shape": [256, 256], "base64": content}
    back = wire.decode_array(there_and_back(sent), "x")
    assert back.dtype == np.float32 and back.shape == (256, 256)
    number = ~torch.isnan(values).numpy()
    assert (back.view(np.uint32) == values.float().numpy().view(np.uint32))[number].all()
    assert np.isnan(back[~number]).all()
    again = torch.from_numpy(back).to(torch.bfloat16)
    assert (again.view(torch.uint16).numpy() == bits.numpy())[number].all()  # and back, as a client in torch has them
    scalar = wire.decode_array({"dtype": "bfloat16", "shape": [], "base64": base64.b64encode(b"\x80?").decode()}, "x")
    assert scalar.shape == () and scalar == 1.0
    with pytest.raises(DataError, match=r"3 bytes for bfloat16 of shape \[2\].*send 4 bytes"):
        wire.decode_array({"dtype": "bfloat16", "shape": [2], "base64": base64.b64encode(b"abc").decode()}, "x")


def test_a_datum_comes_back_whole() -> None:
    datum = Datum(
        (TokenChunk(np.array([5, 6])), ImageChunk(b"\x89PNG", "png", 2, np.array([9, 9]))),
        np.array([[6, 1], [9, 2], [9, 3], [7, 4]]),
        mask=np.array([True, False, True, True]),
        fields={"weights": np.array([0.1, 0, 1, 2], np.float32), "old_logprobs": np.array([-1.1, 0, -0.3, -2])},
        scalars={"label": 1.0},
        group="g",
        positions=np.array([0, 1, 2, 3]),
        parents=np.array([0, 0, 1, 1]),
        place=3,
        id="train.jsonl:17",
    )
    back = wire.decode_datum(there_and_back(wire.encode_datum(datum)), "data[0]")
    for name in ("targets", "mask", "positions", "parents"):
        assert np.array_equal(getattr(back, name), getattr(datum, name)), name
    assert back.fields.keys() == datum.fields.keys()
    for name, values in datum.fields.items():
        assert back.fields[name].dtype == values.dtype and np.array_equal(back.fields[name], values)
    assert (back.scalars, back.group, back.id, back.place) == (datum.scalars, datum.group, datum.id, 3)
    image = back.input[1]
    assert isinstance(image, ImageChunk) and (image.data, image.format, image.length) == (b"\x89PNG", "png", 2)
    assert np.array_equal(back.placeholder_tokens, datum.placeholder_tokens)


def test_a_datum_may_be_written_by_hand() -> None:
    datum = wire.decode_datum(
        {"tokens": [1, 2, 3], "targets": [2, 3, 4], "fields": {"weights": [0, 1, 0.5]}}, "data[0]"
    )
    assert datum.tokens.tolist() == [1, 2, 3] and datum.mask.tolist() == [False, True, True]
    assert datum.fields["weights"].dtype == np.float32


def test_results_come_back_whole() -> None:
    forward = Forward(
        ({"logprobs": np.array([-0.1, -7.25], np.float32)},),
        0.1,
        {"a": 1 / 3},
        {"m": 2.0},
        2,
        4,
        2,
        1,
        Handle(7, 3),
        9.0,
        LossTotals(
            "core:x",
            {"a": Contribution(2 / 3, "groups", 0.1)},
            {"m": Metric(2.0, 3.0, "mean"), "none": Metric(float("-inf"), 0.0, "max")},
        ),
    )
    back = wire.decode_forward(there_and_back(wire.encode_forward(forward)))
    assert np.array_equal(back.outputs[0]["logprobs"], forward.outputs[0]["logprobs"])
    assert (back.loss, back.components, back.metrics, back.handle) == (0.1, {"a": 1 / 3}, {"m": 2.0}, Handle(7, 3))
    assert back.totals == forward.totals
    assert wire.decode_forward(there_and_back(wire.encode_forward(Forward()))).totals is None
    assert (back.tokens, back.padded, back.targets, back.micro_batches, back.flops) == (2, 4, 2, 1, 9.0)
    for result, encode, decode in (
        (Backward(float("inf"), True, 3.0), wire.encode_backward, wire.decode_backward),
        (Stepped(4, 1e-4, 0.3, False), wire.encode_stepped, wire.decode_stepped),
        (Completion((1, 2), (-0.5, -1.5), "ab", "stop", 4), wire.encode_completion, wire.decode_completion),
        (Sampling(5, 0.7, 3, 0.9, 2, ("x",), (1,), 8), wire.encode_sampling, wire.decode_sampling),
        (StepSettings(1e-3, 0.5, {"betas": (0.9, 0.95), "eps": 1e-9}), wire.encode_step_settings,
         wire.decode_step_settings),
    ):  # fmt: skip
        assert decode(there_and_back(encode(result))) == result


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], "not a mapping"),
        ({"targets": [1]}, "needs one of 'input' and 'tokens'"),
        ({"tokens": [1], "targets": [1], "wieghts": [1]}, "unknown key 'wieghts'"),
        ({"tokens": [1], "targets": [1], "place": -1}, "place is -1"),
        ({"tokens": [1]}, "no 'targets'"),
        ({"tokens": [1.5], "targets": [1]}, "not whole"),
        ({"tokens": [[1]], "targets": [1]}, "one list"),
        ({"tokens": [1, 2], "targets": [[1], [1, 2]]}, "not of one length"),
        ({"tokens": [1, 2], "targets": [1]}, "2 positions"),
        ({"tokens": [1], "targets": ["a"]}, "other than numbers"),
        ({"tokens": [1], "targets": [1], "fields": {"weights": [float("nan")]}}, "not finite"),
        ({"tokens": {"dtype": "object", "shape": [1], "base64": ""}, "targets": [1]}, "dtype is 'object'"),
        ({"tokens": {"dtype": "int64", "shape": [2], "base64": "AAAA"}, "targets": [1]}, "3 bytes"),
        ({"tokens": {"dtype": "int64", "shape": [-1], "base64": ""}, "targets": [1]}, "shape is"),
        ({"tokens": {"dtype": "int64", "shape": [10**12], "base64": ""}, "targets": [1]}, "0 bytes"),
        ({"tokens": {"dtype": "int64", "shape": [1], "base64": "%"}, "targets": [1]}, "base64"),
    ],
)
def test_what_is_no_datum_is_refused_in_one_line(value: Any, message: str) -> None:
    with pytest.raises(DataError, match="data\\[3\\]") as caught:
        wire.decode_datum(value, "data[3]")
    assert message in str(caught.value) and "\n" not in str(caught.value) and caught.value.action
