"""The state of a loss is plain afterwards, and stays as it was where the loss does not see the whole step; a loss that
is not finite names its data, and so do outputs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from finetooth_hooks import Datum, EngineError, LossSpec, NotFinite
from finetooth_kit.losses import CENTRED, WEIGHTED_NLL
from finetooth_steps.loss_state import checked_state
from finetooth_steps.micro_batches import one_batch
from finetooth_steps.not_finite import check_finite, check_outputs


def test_a_state_becomes_numbers_and_numpy_arrays() -> None:
    given = {
        "tensor": torch.tensor([1.0, 2.0], requires_grad=True) * 2,
        "scalar": torch.tensor(3, dtype=torch.int64),
        "numpy": np.float32(0.5),
        "array": np.arange(3),
        "number": 4,
        "word": "kept as it is",
    }
    state = checked_state(CENTRED, {}, given)
    assert {name: type(value) for name, value in state.items()} == {
        "tensor": np.ndarray, "scalar": int, "numpy": float, "array": np.ndarray, "number": int, "word": str,
    }  # fmt: skip
    assert state["tensor"].tolist() == [2.0, 4.0] and state["tensor"].dtype == np.float32
    assert (state["scalar"], state["numpy"]) == (3, 0.5)


@pytest.mark.parametrize("together", ["sequence", "group"])
def test_a_loss_that_sees_a_part_hands_its_state_on(together: Any) -> None:
    spec = LossSpec("test:partial", WEIGHTED_NLL.fn, together=together)
    before = {"mean": 0.5, "of": np.array([1.0, 2.0])}
    assert checked_state(spec, before, {}) == before
    assert checked_state(spec, before, {"mean": torch.tensor(0.5), "of": torch.tensor([1.0, 2.0])}) == before
    for after in ({"mean": 0.25, "of": before["of"]}, {"mean": 0.5}, {**before, "more": 1.0}):
        with pytest.raises(EngineError, match=f"'test:partial' returned a state, but it is evaluated per {together}"):
            checked_state(spec, before, after)


@pytest.mark.parametrize("convert", [np.asarray, torch.from_numpy], ids=["numpy", "torch"])
def test_the_data_to_blame_are_named(convert: Any) -> None:
    data = [Datum.from_tokens([1, 2, 3], id=f"row:{i}" if i else "") for i in range(8)]
    logprobs = np.zeros((8, 2))
    logprobs[3, 1], logprobs[5, 0] = np.nan, -np.inf
    given: dict[str, Any] = {"data": data, "batch": one_batch(data), "step": 4, "action": "look"}

    def check(objective: float, outputs: np.ndarray) -> None:
        found = {"logprobs": convert(outputs), "scores": convert(np.zeros(8))}
        check_finite(convert(np.array(objective)), WEIGHTED_NLL, outputs=found, **given)

    check(1.0, logprobs)  # the loss read what is not finite, and is finite
    with pytest.raises(
        NotFinite, match="'kit:weighted_nll' is nan at step 5, with the data 'row:3', 'row:5'"
    ) as caught:
        check(np.nan, logprobs)
    assert (caught.value.rows, caught.value.action) == (("row:3", "row:5"), "look")
    with pytest.raises(NotFinite, match=r"is -inf at step 5, with the data '0', 'row:1', .* and 3 more") as caught:
        check(-np.inf, np.zeros((8, 2)))
    assert len(caught.value.rows) == 8


def test_outputs_that_are_not_finite_name_their_data() -> None:
    data = [Datum.from_tokens([1, 2, 3], id=f"row:{i}" if i else "") for i in range(3)]
    fine = {"logprobs": np.array([0.0, -np.inf]), "scores": np.float32(1.0), "logits": np.zeros((2, 0))}
    check_outputs([], [])
    check_outputs(data, [fine, fine, fine])
    for name, wrong in (
        ("logprobs", np.array([-1.0, np.nan])),
        ("scores", np.float32(np.nan)),
        ("logits", np.full((1, 2), np.inf)),
    ):
        with pytest.raises(
            NotFinite, match=f"the model's {name} are not finite, with the data '0', 'row:2' "
        ) as caught:
            check_outputs(data, [{**fine, name: wrong}, fine, {**fine, name: wrong}])
        assert caught.value.rows == ("0", "row:2")
