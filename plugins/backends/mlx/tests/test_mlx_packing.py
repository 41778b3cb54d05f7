"""Data that share rows, and data with segments: the numbers are those of each sequence alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("mlx_lm", reason="mlx-lm is not installed")

import mlx.core as mx
import mlx.nn as nn
from finetooth_hooks import DataError, Datum, PlanError
from finetooth_kit.losses import WEIGHTED_NLL
from finetooth_mlx.adapters import LoraAdapter, LoraOptions
from finetooth_mlx.packing import obstacle

LENGTHS = (40, 9, 31, 7, 24, 16, 12)
DATA = [Datum.from_tokens([20 + (7 * i + j) % 60 for j in range(n)], id=f"row {i}") for i, n in enumerate(LENGTHS)]
KINDS = {
    "qwen3": {},
    "mistral": {"sliding_window": 8},
    "llama": {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 8},
}


def results(engine: Any) -> tuple[float, list[np.ndarray], dict[str, np.ndarray]]:
    """Loss, log-probabilities, and how far a step of plain descent moves: the gradient."""
    before = {name: np.array(array) for name, array in engine.weights().items()}
    done = engine.forward_backward(DATA, WEIGHTED_NLL)
    engine.step()
    moved = {name: before[name] - np.array(array) for name, array in engine.weights().items()}
    return done.loss, [of["logprobs"] for of in done.outputs], moved


def computed(engine: Any, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Shapes of what goes through the model meanwhile."""
    shapes: list[tuple[int, int]] = []
    body = engine._network.body

    def seen(tokens: mx.array, **more: Any) -> mx.array:
        shapes.append(tokens.shape)
        return body(tokens, **more)

    monkeypatch.setattr(engine._network, "body", seen)
    return shapes


@pytest.mark.parametrize("kind", list(KINDS))
def test_packed_and_padded_rows_have_the_same_numbers(
    tmp_path: Path, write: Callable[..., Path], engine_of: Any, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dropout, noise on embeddings and layers that are computed twice included, windows as well."""
    folder = write(tmp_path, kind, **KINDS[kind])
    adapter = lambda: LoraAdapter(LoraOptions(rank=4, targets="all-linear", dropout=0.2))  # noqa: E731
    settings = {"micro_batch_tokens": 160, "gradient_checkpointing": True, "embedding_noise": 5.0}
    engines = [
        engine_of(folder, adapter=adapter(), options={"packing": packing}, **settings) for packing in (True, False)
    ]
    shapes = [computed(engine, monkeypatch) for engine in engines]
    (loss, scored, moved), (their_loss, their_scored, their_moved) = map(results, engines)
    packed, padded = (sum(rows * width for rows, width in of) for of in shapes)
    assert packed < 0.85 * padded and packed < 1.15 * sum(LENGTHS)
    assert loss == pytest.approx(their_loss, rel=1e-6)
    for mine, theirs in zip(scored, their_scored, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=2e-5)
    for name, gradient in their_moved.items():
        np.testing.assert_allclose(moved[name], gradient, atol=1e-5 * max(1.0, np.abs(gradient).max()))


def test_segments_of_a_datum_are_sequences_of_their_own(
    tmp_path: Path, write: Callable[..., Path], engine_of: Any
) -> None:
    engine = engine_of(write(tmp_path, "mistral", sliding_window=8), micro_batch_tokens=96)
    alone = engine.logprobs(DATA)
    tokens = np.concatenate([datum.tokens for datum in DATA[1:4]])
    targets = np.concatenate([datum.targets for datum in DATA[1:4]])
    parents = np.concatenate([[-1, *range(at, at + n - 1)] for at, n in ((0, 8), (8, 30), (38, 6))])
    whole = Datum.from_tokens([*map(int, tokens), int(targets[-1])], id="three")
    joined = Datum(input=whole.input, targets=targets, parents=parents, id="three")
    (found,) = engine.logprobs([joined])
    np.testing.assert_allclose(found, np.concatenate(alone[1:4]), atol=2e-5)
    assert np.abs(engine.logprobs([whole])[0] - found).max() > 0.01
    tree = Datum(input=whole.input, targets=targets, parents=[*parents[:-1], 3], id="tree")
    with pytest.raises(DataError, match="a segment continues another one"):
        engine.logprobs([tree])


def test_a_model_that_mixes_sequences_is_padded(
    tmp_path: Path, write: Callable[..., Path], engine_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that hands a state on, and one that counts positions through a row, as mlx-lm's recurrent classes and GPT-2
    do."""

    class Body(nn.Module):
        def __init__(self, *, sums: bool) -> None:
            super().__init__()
            self.sums, self.embed_tokens = sums, nn.Embedding(50, 8)

        def __call__(self, tokens: mx.array, cache: Any = None) -> mx.array:
            states = self.embed_tokens(tokens)
            return mx.cumsum(states, axis=1) if self.sums else states + mx.arange(tokens.shape[1])[:, None]

    assert "a sequence sees the one before it" in obstacle(Body(sums=True), 1, 50)
    assert "other states in a shared row than alone" in obstacle(Body(sums=False), 1, 50)
    monkeypatch.setattr("finetooth_mlx.network.obstacle", lambda *_: "layers hand a state on")
    folder = write(tmp_path)
    with pytest.raises(PlanError, match="packing=true: layers hand a state on"):
        engine_of(folder, options={"packing": True})
    engine = engine_of(folder, micro_batch_tokens=80)
    shapes = computed(engine, monkeypatch)
    engine.logprobs(DATA)
    assert sum(rows for rows, _ in shapes) == len(DATA)
    joined = Datum(input=DATA[0].input, targets=DATA[0].targets, parents=[-1] * len(DATA[0]), id="apart")
    with pytest.raises(DataError, match="cannot be kept apart: layers hand a state on"):
        engine.logprobs([joined])
