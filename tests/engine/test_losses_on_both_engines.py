"""Every loss gives the same numbers and gradients under the NumPy engine and under the torch engine, in float64, on a
toy and its twin with the same weights; and the same value under MLX."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from finetooth_hooks import Datum, Entry, LossSpec
from finetooth_kit import FakeContext, entries_of, parametrize_with_checks
from finetooth_kit.losses import CENTRED, PAIR_MARGIN
from toy_numpy.making import engine as numpy_engine
from toy_numpy.making import request
from toy_numpy.model import MATRICES
from toy_numpy.optimizers import Sgd
from toy_numpy.parts import Factory

pytest.importorskip("finetooth_torch")
from toy_numpy.torch_twin import TorchSgd, TwinAdapter, TwinLoader, deltas

VOCAB, WIDTH = 12, 5
PRECISION, TOLERANCE = "fp64", 1e-9
PROOF = entries_of("proof_losses.plugin")


def first_party_losses() -> list[Entry]:
    """Losses of all installed plugins of ours."""
    points = sorted(entry_points(group="finetooth"), key=lambda point: point.value)
    ours = [point for point in points if point.dist is not None and point.dist.name.startswith("finetooth-")]
    return [entry for point in ours for entry in entries_of(point.value) if entry.kind == "loss"]


def torch_engine(budget: int = 16, rate: float = 0.1, adapter: TwinAdapter | None = None) -> Any:
    """The torch engine over the twin."""
    from finetooth_torch.backend import TorchBackend, TorchOptions

    made = request(vocab=VOCAB, width=WIDTH, budget=budget, loader=TwinLoader(VOCAB, WIDTH))
    plan = replace(made.plan, train=replace(made.plan.train, precision=PRECISION))
    trains = replace(made.trains, adapter=adapter or TwinAdapter())
    made = replace(made, plan=plan, trains=trains, updates=replace(made.updates, optimizer=TorchSgd(rate)))
    return TorchBackend(TorchOptions(attention="eager"), FakeContext(Path(), installed=True)).engine(made)


def data(seed: int) -> list[Datum]:
    """Pairs with labels, of different lengths."""
    random = np.random.default_rng(seed)
    found = []
    for i in range(8):
        length = int(random.integers(4, 10))
        weights = np.where(random.random(length) < 0.3, 0.0, 1.0)
        weights[-1] = 1.0
        tokens = [int(t) for t in random.integers(1, VOCAB, size=length)]
        scalars = {"label": float(i % 2 == 0), "margin": 0.1, "kl": 0.2}
        datum = Datum.from_tokens(tokens, list(weights), scalars=scalars, group=f"{i // 2}", id=f"row:{i}")
        fields = {
            "old_logprobs": -random.uniform(1.0, 3.0, length - 1),
            "advantages": random.normal(size=length - 1),
            "labels": (random.random(length - 1) < 0.5).astype(float),
            "token_weights": np.linspace(0.5, 1.5, length - 1),
        }
        more = {name: values.astype(np.float32) for name, values in fields.items()}
        found.append(replace(datum, fields={**datum.fields, **more}))
    return found


def spec(entry: Entry, folder: Path) -> LossSpec:
    context = FakeContext(folder, entries=(entry,))
    return context.loss({"name": entry.name, **entry.example})


LOSSES = [*first_party_losses(), *PROOF]
OUT_OF_REACH = {"scores", "values", "logits"}
WORDS = [
    loss
    for loss in LOSSES
    if not OUT_OF_REACH & getattr(loss, "needs", frozenset())
    and "teacher_logprobs" not in getattr(loss, "fields", frozenset())
]
"""Those that read no scalar head, whose checks are in the kit of engines, and no whole distributions, which the toy
does not give: their own packages hold those against float64."""


@pytest.mark.parametrize("budget", [16, 1000], ids=["small-batches", "one-batch"])
@pytest.mark.parametrize("entry", WORDS, ids=lambda entry: entry.name)
def test_both_engines_have_the_same_gradients(entry: Entry, budget: int, tmp_path: Path) -> None:
    _compare(spec(entry, tmp_path), budget)


@pytest.mark.parametrize("loss", [PAIR_MARGIN, CENTRED], ids=lambda loss: loss.name)
def test_both_engines_agree_on_the_losses_of_the_kit(loss: LossSpec) -> None:
    _compare(loss, 16)


def _compare(loss: LossSpec, budget: int) -> None:
    adapter = TwinAdapter()
    mine = numpy_engine(vocab=VOCAB, width=WIDTH, budget=budget, optimizer=Factory(1.0, Sgd))
    theirs = torch_engine(budget, 1.0, adapter)
    assert (mine.info.framework, theirs.info.framework) == ("numpy", "torch")
    before = {name: np.zeros_like(mine.model.delta[name]) for name in MATRICES}
    for step in range(3):  # the second step has a state, and a policy that has left the reference
        results = [each.forward_backward(data(step), loss) for each in (mine, theirs)]
        assert results[1].loss == pytest.approx(results[0].loss, rel=TOLERANCE, abs=TOLERANCE)
        assert results[1].metrics == pytest.approx(dict(results[0].metrics), rel=TOLERANCE, abs=TOLERANCE)
        norms = [each.step().grad_norm for each in (mine, theirs)]
        assert norms[1] == pytest.approx(norms[0], rel=TOLERANCE)
        assert norms[0] > 1e-4
        after = deltas(adapter.models[0])
        for name in MATRICES:
            # gradient descent at rate 1: what a matrix moved by is its gradient
            wanted = mine.model.delta[name] - before[name]
            np.testing.assert_allclose(after[name] - before[name], wanted, rtol=TOLERANCE, atol=TOLERANCE * norms[0])
            before[name] = mine.model.delta[name].copy()


def test_both_engines_score_alike() -> None:
    for role in ("policy", "reference"):
        scores = [
            each.logprobs(data(0), role=role) for each in (numpy_engine(vocab=VOCAB, width=WIDTH), torch_engine())
        ]
        for mine, theirs in zip(*scores, strict=True):
            np.testing.assert_allclose(mine, theirs, atol=1e-6)


@parametrize_with_checks(*LOSSES)
def test_losses_conform(check: Callable[[], None]) -> None:
    check()
