"""Bad input to linear_logprob and its reference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from finetooth_kernels import linear_logprob, references
from finetooth_kernels.contract import LinearLogprob

Function = Callable[..., LinearLogprob]
ON_A_CPU: dict[str, Function] = {
    "torch": linear_logprob.linear_logprob,
    "reference": references.linear_logprob,
}


def good() -> dict[str, Any]:
    return {
        "hidden_nd": torch.zeros(3, 4),
        "weight_vd": torch.zeros(7, 4),
        "targets": torch.tensor([0, 6, 3]),
        "mask": torch.tensor([True, True, False]),
        "bias_v": torch.zeros(7),
    }


BAD: list[tuple[str, dict[str, Any], str]] = [
    ("hidden_nd", {"hidden_nd": torch.zeros(1, 3, 4)}, "2 dimensions"),
    ("weight_vd", {"weight_vd": torch.zeros(7)}, "2 dimensions"),
    ("weight_vd", {"weight_vd": torch.zeros(7, 5)}, "width 5"),
    ("weight_vd", {"weight_vd": torch.zeros(0, 4)}, "at least one"),
    ("weight_vd", {"weight_vd": torch.zeros(7, 4).bfloat16()}, "bfloat16"),
    ("hidden_nd", {"hidden_nd": torch.zeros(3, 4, dtype=torch.int64)}, "unsupported dtype torch.int64"),
    ("hidden_nd", {"hidden_nd": torch.zeros(3, 4, dtype=torch.complex64)}, "unsupported dtype"),
    ("weight_vd", {"weight_vd": torch.zeros(7, 4, device="meta")}, "meta"),
    ("bias_v", {"bias_v": torch.zeros(6)}, "(7,)"),
    ("bias_v", {"bias_v": torch.zeros(7, 1)}, "(7,)"),
    ("bias_v", {"bias_v": torch.zeros(7).double()}, "float64"),
    ("targets", {"targets": torch.tensor([0, 1])}, "(3,)"),
    ("targets", {"targets": torch.zeros(3, 0, dtype=torch.int64)}, "K >= 1"),
    ("targets", {"targets": torch.tensor([0, 1, 2], dtype=torch.int32)}, "int64"),
    ("targets", {"targets": torch.tensor([0, 7, 0])}, "id 7 in row 1"),
    ("targets", {"targets": torch.tensor([0, -100, 0])}, "id -100 in row 1"),
    ("targets", {"targets": torch.tensor([[0, 9], [1, 1], [1, 1]])}, "id 9 in row 0"),
    ("targets", {"targets": torch.tensor([0, 0, 8]), "mask": torch.tensor([False, True, True])}, "id 8 in row 2"),
    ("mask", {"mask": torch.ones(4, dtype=torch.bool)}, "(3,)"),
    ("mask", {"mask": torch.ones(3)}, "bool"),
    ("expected", {"expected": torch.ones(2)}, "(3,)"),
    ("expected", {"expected": torch.ones(3, dtype=torch.int64)}, "floating point"),
    ("scale", {"scale": float("nan")}, "finite"),
    ("softcap", {"softcap": 0.0}, "positive"),
    ("softcap", {"softcap": float("nan")}, "positive"),
    ("temperature", {"temperature": 0.0}, "positive"),
    ("temperature", {"temperature": -1.0}, "positive"),
    ("temperature", {"temperature": float("inf")}, "finite"),
    ("chunk_bytes", {"chunk_bytes": 0}, "positive"),
]


@pytest.mark.parametrize("function", ON_A_CPU.values(), ids=ON_A_CPU)
@pytest.mark.parametrize(("name", "change", "says"), BAD, ids=[f"{name}-{says}" for name, _, says in BAD])
def test_bad_input_is_one_line_that_names_the_argument(
    function: Function, name: str, change: dict[str, Any], says: str
) -> None:
    with pytest.raises(ValueError) as caught:
        function(**{**good(), **change})
    message = str(caught.value)
    assert message.startswith(name) and says in message and "\n" not in message


@pytest.mark.parametrize("function", ON_A_CPU.values(), ids=ON_A_CPU)
def test_targets_of_masked_rows_are_not_looked_at(function: Function) -> None:
    arguments = {**good(), "targets": torch.tensor([0, 6, -100])}
    logprobs = function(**arguments).logprobs
    expected = torch.tensor([-1.0, -1.0, 0.0]) * torch.log(torch.tensor(7.0))
    torch.testing.assert_close(logprobs, expected)


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
def test_a_dtype_that_nothing_takes_is_one_line(dtype: torch.dtype) -> None:
    for module in (linear_logprob, references):
        answer = module.available("cpu", dtype)
        assert not answer.available and "is not supported, only float32" in answer.reason
        assert "\n" not in answer.reason
