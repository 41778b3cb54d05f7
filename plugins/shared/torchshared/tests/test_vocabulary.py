"""New rows begin as the mean of those that were trained, without a second embedding in memory."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from finetooth_torchshared import vocabulary
from finetooth_torchshared.vocabulary import widen

torch: Any = pytest.importorskip("torch")
dispatch: Any = pytest.importorskip("torch.utils._python_dispatch")


class Model:
    """An embedding and a head with a bias."""

    def __init__(self, rows: int, width: int, dtype: Any) -> None:
        numbers = np.random.default_rng(0)
        drawn = [
            torch.tensor(numbers.normal(size=shape), dtype=dtype) for shape in ((rows, width), (rows, width), rows)
        ]
        self.embedding = SimpleNamespace(weight=torch.nn.Parameter(drawn[0]))
        self.head = SimpleNamespace(weight=torch.nn.Parameter(drawn[1]), bias=torch.nn.Parameter(drawn[2]))

    def get_input_embeddings(self) -> Any:
        return self.embedding

    def get_output_embeddings(self) -> Any:
        return self.head

    def parameters(self) -> list[Any]:
        return [self.embedding.weight, self.head.weight, self.head.bias]

    def resize_token_embeddings(self, size: int, mean_resizing: bool) -> None:
        assert not mean_resizing
        for end, name in ((self.embedding, "weight"), (self.head, "weight"), (self.head, "bias")):
            old = getattr(end, name).data
            rows = torch.full((size - len(old), *old.shape[1:]), float("nan"), dtype=old.dtype)
            setattr(end, name, torch.nn.Parameter(torch.cat([old, rows])))


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
@pytest.mark.parametrize(("size", "new"), [(53, (3, 41, 50, 51, 52)), (50, (0, 20, 49)), (48, (47,))])
def test_new_rows_are_the_mean_of_the_others(
    monkeypatch: pytest.MonkeyPatch, dtype: str, size: int, new: tuple[int, ...]
) -> None:
    """50 rows; of a model that has more than its tokenizer has ids, those nobody uses do not count."""
    monkeypatch.setattr(vocabulary, "PORTION", 16)
    model = Model(50, 4, getattr(torch, dtype))
    for parameter in model.parameters():
        parameter.data[[id_ for id_ in new if id_ < 50]] = float("nan")
    before = [parameter.data.double().numpy() for parameter in model.parameters()]
    widen(model, size, new)
    trained = [id_ for id_ in range(min(50, size)) if id_ not in new]
    for parameter, was in zip(model.parameters(), before, strict=True):
        now = parameter.data.double().numpy()
        np.testing.assert_array_equal(np.delete(now, new, 0), np.delete(was, [n for n in new if n < 50], 0))
        expected = torch.tensor(was[trained].mean(0)).to(getattr(torch, dtype)).double().numpy()
        tolerance = 1e-12 if dtype == "float64" else 1e-7 if dtype == "float32" else 0.01
        np.testing.assert_allclose(now[list(new)], np.broadcast_to(expected, now[list(new)].shape), rtol=tolerance)


def test_no_second_embedding_is_made() -> None:
    model = Model(10 * vocabulary.PORTION, 2, torch.float32)
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    made: list[int] = []

    class Watch(dispatch.TorchDispatchMode):  # type: ignore[misc]
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = function(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor) and result.untyped_storage().data_ptr() not in own:
                made.append(result.numel())
            return result

    with Watch():
        widen(model, 10 * vocabulary.PORTION, (7,))
    assert 0 < max(made) <= 2 * vocabulary.PORTION
