"""An update that breaks off is never kept, however its optimizer writes to the weights."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from finetooth_hooks import EngineError
from finetooth_torch.state.update_guard import Wholeness
from torch import nn

HALF = "the weights may be half updated"
COUNTED: list[tuple[str, dict[str, Any]]] = [
    *((name, {"foreach": foreach}) for name in ("Adam", "AdamW", "SGD", "Adagrad") for foreach in (False, True)),
    *((name, {"fused": True}) for name in ("Adam", "AdamW")),
    *((name, {}) for name in ("Adadelta", "Adafactor", "Adamax", "ASGD", "NAdam", "RAdam", "RMSprop", "Rprop")),
]


class Raw(torch.optim.Optimizer):
    """Writes where torch does not count, as kernels of others do, and breaks off behind the first weight."""

    def __init__(self, parameters: Any, lr: float, way: str = "data", moves: bool = True) -> None:
        super().__init__(parameters, {"lr": lr})
        self.way, self.moves = way, moves

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        first = self.param_groups[0]["params"][0]
        if self.moves and self.way == "data":
            first.data.add_(1.0)
        elif self.moves and self.way == "replaced":
            first.data = first.data + 1.0
        elif self.moves:
            first.detach().numpy()[...] += 1.0
        raise MemoryError


def broken_off(whole: Wholeness, optimizer: torch.optim.Optimizer, masters: list[nn.Parameter], after: Any) -> None:
    with pytest.raises(MemoryError), whole.update(optimizer, masters):
        after()
        raise MemoryError


@pytest.mark.parametrize(("name", "options"), COUNTED)
def test_torch_counts_what_each_of_its_optimizers_writes(name: str, options: dict[str, Any]) -> None:
    """Every weight that moved counts, alone: what it would be to break off behind it."""
    masters = [nn.Parameter(torch.ones(4, 3)), nn.Parameter(torch.ones(5))]
    optimizer = getattr(torch.optim, name)(masters, lr=0.1, **options)
    untouched = Wholeness()
    broken_off(untouched, optimizer, masters, lambda: None)
    untouched.check_weights()
    with pytest.raises(EngineError, match="the optimizer's state may be half updated"):
        untouched.check_state()
    for moved in masters:
        masters[0].grad = masters[1].grad = None
        moved.grad = torch.ones_like(moved)
        before, whole = [m.detach().clone() for m in masters], Wholeness()
        broken_off(whole, optimizer, masters, optimizer.step)
        assert [torch.equal(a, b) for a, b in zip(before, masters, strict=True)] == [m is not moved for m in masters]
        with pytest.raises(EngineError, match=HALF):
            whole.check_weights()


@pytest.mark.parametrize("name", ["Adam", "AdamW", "SGD", "Adagrad"])
def test_fused_kernels_write_uncounted(name: str) -> None:
    """Those that count no steps are not trusted even where nothing has moved."""
    masters = [nn.Parameter(torch.ones(4, 3))]
    optimizer, whole = getattr(torch.optim, name)(masters, lr=0.1, fused=True), Wholeness()
    masters[0].grad = torch.ones_like(masters[0])
    version = masters[0]._version
    broken_off(whole, optimizer, masters, optimizer.step)
    assert masters[0]._version == version and not torch.equal(masters[0], torch.ones(4, 3))
    with pytest.raises(EngineError, match=HALF):
        whole.check_weights()
    if name in ("SGD", "Adagrad"):
        untouched = Wholeness()
        broken_off(untouched, optimizer, masters, lambda: None)
        with pytest.raises(EngineError, match=HALF):
            untouched.check_weights()


@pytest.mark.slow
@pytest.mark.parametrize("way", ["data", "replaced", "memory"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_what_torch_does_not_count_is_not_trusted(
    kit: SimpleNamespace, tmp_path: Path, way: str, precision: str
) -> None:
    engine = kit.engine(optimizer=kit.optimizer(Raw, options={"way": way}), precision=precision)
    engine.forward_backward(kit.data(), kit.nll)
    with pytest.raises(EngineError, match="step ran out of memory"):
        engine.step()
    for keep in (engine.export, engine.save):
        with pytest.raises(EngineError, match=HALF):
            keep(tmp_path / "kept")


@pytest.mark.slow
def test_of_an_optimizer_of_others_nothing_is_known(kit: SimpleNamespace, tmp_path: Path) -> None:
    """It has moved nothing here, and might have; a restored state is whole again."""
    whole = kit.engine(optimizer=kit.optimizer(Raw, options={"moves": False}))
    whole.save(tmp_path / "state")
    whole.forward_backward(kit.data(), kit.nll)
    with pytest.raises(EngineError, match="step ran out of memory"):
        whole.step()
    with pytest.raises(EngineError, match=HALF):
        whole.export(tmp_path / "weights")
    whole.load(tmp_path / "state")
    whole.export(tmp_path / "weights")


def test_a_class_derived_from_torchs_is_not_torchs() -> None:
    class Mine(torch.optim.SGD):
        pass

    masters = [nn.Parameter(torch.ones(2))]
    whole = Wholeness()
    broken_off(whole, Mine(masters, lr=0.1), masters, lambda: None)
    with pytest.raises(EngineError, match=HALF):
        whole.check_weights()
