"""Every adapter on the torch engine: it learns, and it goes on from a saved state bit for bit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from finetooth_hooks import Datum, LossSpec
from finetooth_hooks import arrays as xp
from finetooth_hooks.compute.losses import Contribution, LossResult
from finetooth_kit import FakeContext, entries_of
from finetooth_kit.torch_request import FACTS, TinyLlamaLoader
from toy_numpy.making import request

pytest.importorskip("finetooth_torch")
pytest.importorskip("finetooth_peft")

PLUGINS = ("finetooth_lora.plugin", "finetooth_peft.plugin", "finetooth_freeze.plugin")
ADAPTERS: dict[str, dict[str, Any]] = {
    "lora": {"name": "lora", "rank": 4},
    "lora with dora": {"name": "lora", "rank": 4, "dora": True},
    "pissa": {"name": "lora", "rank": 2, "init": "pissa"},
    "olora and lora+": {"name": "lora", "rank": 2, "init": "olora", "loraplus_ratio": 4},
    "relora": {"name": "relora", "rank": 2, "every": 3, "warm_up": 1, "keep_state": 0.1},
    "relora forgetting": {"name": "relora", "rank": 2, "every": 2, "warm_up": 0, "keep_state": 0},
    "oft": {"name": "oft", "block_size": 4},
    "boft": {"name": "boft", "block_size": 4},
    "vera": {"name": "vera", "rank": 8},
    "ia3": {"name": "ia3"},
    "freeze": {"name": "freeze", "layers": 1},
    "lisa": {"name": "lisa", "layers": 1, "every": 2},
}
EACH = pytest.mark.parametrize("name", list(ADAPTERS))


class Adam:
    """torch's AdamW: it keeps a state, which must come back."""

    capabilities: frozenset[str] = frozenset()
    learning_rate = 0.02

    def create(self, named_parameters: Any) -> Any:
        import torch

        return torch.optim.AdamW([parameter for _, parameter in named_parameters], lr=self.learning_rate)

    def state_bytes(self, facts: Any) -> None:
        return None


def made(name: str, precision: str = "fp32") -> Any:
    from finetooth_torch.backend import TorchBackend, TorchOptions

    entries = [entry for plugin in PLUGINS for entry in entries_of(plugin) if entry.kind == "adapter"]
    (entry,) = [entry for entry in entries if entry.name == ADAPTERS[name]["name"]]
    adapter = FakeContext(Path(), entries=(entry,)).build("adapter", ADAPTERS[name])
    asked = request(budget=64, loader=TinyLlamaLoader())
    asked = replace(
        asked,
        plan=replace(asked.plan, train=replace(asked.plan.train, precision=precision)),
        base=replace(asked.base, facts=FACTS),
        trains=replace(
            asked.trains, adapter=adapter, head=None, can_disable=entry.can_disable, base_frozen=entry.base_frozen
        ),
        updates=replace(asked.updates, optimizer=Adam()),
    )
    return TorchBackend(TorchOptions(), FakeContext(Path(), installed=True)).engine(asked)


def nll(outputs: Any, data: Any, state: Any) -> LossResult:
    each = xp.sum(xp.where(data.mask, outputs["logprobs"], 0.0), axis=1)
    return LossResult({"nll": Contribution(-xp.sum(each), per="sequences")})


NLL = LossSpec("test:nll", nll)


def data(count: int = 4) -> list[Datum]:
    drawn = np.random.default_rng(0)
    rows = [[int(token) for token in drawn.integers(1, 30, size=8)] for _ in range(count)]
    return [Datum.from_tokens(row, [1.0] * len(row), id=f"row:{number}") for number, row in enumerate(rows)]


def losses(engine: Any, steps: int) -> list[float]:
    found = []
    for _ in range(steps):
        found.append(engine.forward_backward(data(), NLL).loss)
        engine.step()
    return found


@EACH
def test_it_learns_and_goes_on_bit_for_bit(name: str, tmp_path: Path) -> None:
    """Saved between two changes of what changes between steps, and taken back by another engine and by the same one."""
    engine = made(name)
    before = losses(engine, 5)
    engine.save(tmp_path / "state")
    snapshot = engine.snapshot()
    wanted = losses(engine, 5)
    assert wanted[-1] < before[0] * 0.98
    assert all(np.isfinite(before + wanted))
    other = made(name)
    other.load(tmp_path / "state")
    assert losses(other, 5) == wanted
    engine.rollback(snapshot)
    assert losses(engine, 5) == wanted


@EACH
def test_it_learns_and_goes_on_bit_for_bit_in_bf16(name: str, tmp_path: Path) -> None:
    engine = made(name, "bf16")
    before = losses(engine, 5)
    engine.save(tmp_path / "state")
    wanted = losses(engine, 5)
    assert wanted[-1] < before[0]
    other = made(name, "bf16")
    other.load(tmp_path / "state")
    assert losses(other, 5) == wanted


@EACH
def test_the_artifact_scores_as_the_engine_that_wrote_it(name: str, tmp_path: Path) -> None:
    engine = made(name)
    losses(engine, 7)
    engine.export(tmp_path / "artifact")
    wanted = engine.logprobs(data())
    other = made(name)
    other.restore(tmp_path / "artifact")
    for ours, theirs in zip(other.logprobs(data()), wanted, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=2e-5)


def test_a_role_that_is_the_base_is_the_base() -> None:
    for name in ("pissa", "oft", "boft", "vera", "ia3"):
        engine = made(name)
        base = engine.logprobs(data(), role="reference")
        losses(engine, 3)
        for ours, theirs in zip(engine.logprobs(data(), role="reference"), base, strict=True):
            assert np.array_equal(ours, theirs)
