"""Several ranks that train one set of parameters, against one engine with all the data."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from finetooth_hooks import EngineError, NotFinite, PlanError
from finetooth_hooks.errors import Interrupted
from finetooth_steps.normalizers import count_normalizers

sys.path.insert(0, str(Path(__file__).parent))
from ranks_in_threads import lines, together  # type: ignore[import-not-found]

RANK = Path(__file__).with_name("one_rank.py")
LIMIT = 0.05


class Recorded:
    """Two ranks in one process, of which the other one's gradients are known beforehand."""

    rank, world = 0, 2

    def __init__(self, other: dict[int, Any], *, held: bool = True) -> None:
        self.other, self.held = other, held

    def sum(self, arrays: Any) -> list[Any]:
        return [array + self.other.get(place, 0.0) for place, array in enumerate(arrays)]

    def gather(self, value: Any) -> list[Any]:
        return [value, value]


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes wrote. They train with both decoders, since what they take is the time to import torch."""
    folder = tmp_path_factory.mktemp("ranks")
    ranks = [
        subprocess.Popen(
            [sys.executable, str(RANK), str(rank), str(folder / "store"), str(folder), "auto", "transformers"]
        )
        for rank in (0, 1)
    ]
    assert [rank.wait(timeout=600) for rank in ranks] == [0, 0]
    return folder


@pytest.mark.slow
def test_two_processes_take_the_step_of_one(kit: SimpleNamespace, two_ranks: Path) -> None:
    """Half the data each, gradients summed over gloo and clipped by the global norm; three steps, one seed."""
    whole = kit.engine(max_grad_norm=LIMIT)
    data, norms = kit.data(8, seed=2), []
    for step in range(3):
        for part in (data[:4], data[4:]):  # accumulated over two calls, as each rank does
            whole.forward_backward(part, kit.nll, normalizer=count_normalizers(data))
        norms.append(whole.step().grad_norm)
        assert norms[step] > LIMIT  # it clips
    found = [np.load(two_ranks / f"{kit.decoder}{rank}.npz") for rank in (0, 1)]
    said = [json.loads((two_ranks / f"{kit.decoder}{rank}.json").read_text(encoding="utf-8")) for rank in (0, 1)]
    assert said[0] == said[1]
    *broken, _ = said[0]["broken"]
    for problem, rows in broken:  # at rank 1 alone, and raised at both
        assert problem.startswith("loss 'test:nll' is nan at step 4") and rows == ["row:6", "row:7"]
    np.testing.assert_allclose(said[0]["norms"], norms, rtol=1e-5)
    np.testing.assert_allclose(said[0]["backward"], norms[0], rtol=1e-5)
    for name, weight in kit.weights(whole).items():
        assert np.array_equal(found[0][name], found[1][name]), name
        np.testing.assert_allclose(found[0][name], weight, atol=2e-5, err_msg=name)


@pytest.mark.slow
def test_what_is_not_finite_at_one_rank_leaves_nothing_at_any(kit: SimpleNamespace, two_ranks: Path) -> None:
    """The step after it is that of the good calls: what the other rank had computed beside the bad one is gone too."""
    whole, data = kit.engine(max_grad_norm=LIMIT), kit.data(8, seed=2)
    for _ in range(4):
        whole.forward_backward(data, kit.nll)
        norm = whole.step().grad_norm
    for rank in (0, 1):
        said = json.loads((two_ranks / f"{kit.decoder}{rank}.json").read_text(encoding="utf-8"))
        assert said["broken"][-1] == pytest.approx(norm, rel=1e-4)


def test_what_one_rank_raises_ends_the_call_at_the_others(kit: SimpleNamespace) -> None:
    """Each kind, as the other rank is told of it."""

    class Told:
        rank, world = 0, 2

        def __init__(self, told: Any) -> None:
            self.told = told

        def gather(self, value: Any) -> list[Any]:
            return [value, self.told]

    for told, kind, said in (
        (["failed", "KeyError: 'x'", "", []], EngineError, "rank 1 failed: KeyError: 'x'"),
        (["interrupted", "asked to stop", "", []], Interrupted, "asked to stop"),
        (["not finite", "loss is nan", "look", ["row:9"]], NotFinite, "loss is nan"),
    ):
        engine = kit.engine(collective=Told(told))
        with pytest.raises(kind, match=said):
            engine.forward_backward(kit.data(2), kit.nll)
        assert not engine._parts.parameters.gradients() and engine._counters.accumulated == 0


def test_without_others_nothing_changes_by_a_bit(kit: SimpleNamespace) -> None:
    class Alone:
        rank, world = 0, 1

        def sum(self, arrays: Any) -> list[Any]:
            return [array.clone() for array in arrays]

        def gather(self, value: Any) -> list[Any]:
            return [value]

    made = [kit.engine(max_grad_norm=LIMIT, collective=collective) for collective in (None, Alone())]
    for engine in made:
        for _ in range(2):
            engine.forward_backward(kit.data(), kit.nll)
            engine.step()
    one, other = (kit.weights(engine) for engine in made)
    assert all(np.array_equal(one[name], other[name]) for name in one)


def test_a_gradient_that_is_not_finite_elsewhere_stops_every_rank(kit: SimpleNamespace) -> None:
    engine = kit.engine(max_grad_norm=LIMIT, collective=Recorded({0: float("inf")}))
    before = kit.weights(engine)
    engine.forward_backward(kit.data(2), kit.nll)
    with pytest.raises(NotFinite, match="the gradient norm is") as caught:
        engine.step()
    assert caught.value.rows == ("row:0", "row:1", "row:0", "row:1")  # of both ranks
    assert all(np.array_equal(before[name], weight) for name, weight in kit.weights(engine).items())


def test_no_rank_has_a_gradient(kit: SimpleNamespace) -> None:
    engine = kit.engine(collective=Recorded({}))
    with pytest.raises(EngineError, match="no gradients were accumulated"):
        engine.step()


def test_a_loss_that_must_see_a_whole_step_is_refused_where_each_rank_has_a_part(kit: SimpleNamespace) -> None:
    """Before anything is computed; one rank alone has all of it."""

    class Alone(Recorded):
        world = 1

    loss, data = replace(kit.nll, together="step"), kit.data(2)
    engine = kit.engine(collective=Recorded({}))
    for call in (engine.forward_backward, engine.forward):
        with pytest.raises(PlanError, match="loss test:nll: it must see a whole step at once, and each of 2 ranks has"):
            call(data, loss)
    assert not engine._parts.parameters.gradients() and not engine._counters.accumulated
    engine.forward_backward(data, replace(loss, together="group"))
    alone = Alone({})
    alone.gather = lambda value: [value]  # type: ignore[method-assign]
    kit.engine(collective=alone).forward_backward(data, loss)


@pytest.mark.parametrize("first", [3, 7], ids=["uneven", "one rank has none"])
def test_a_state_before_a_step_has_what_all_ranks_accumulated(kit: SimpleNamespace, tmp_path: Path, first: int) -> None:
    """Saved by two ranks between a call and its step; taken back by two others, and by one."""
    data, further = kit.data(7, seed=4), kit.data(4, seed=5)
    counts = count_normalizers([*data, *further])
    whole = kit.engine(max_grad_norm=LIMIT)
    whole.forward_backward(data, kit.nll, normalizer=counts)
    begun, others = ([kit.engine(max_grad_norm=LIMIT, collective=line) for line in lines()] for _ in range(2))

    def each(engines: list[Any], call: Any) -> list[Any]:
        return together([lambda engine=engine, rank=rank: call(engine, rank) for rank, engine in enumerate(engines)])

    def share(rows: list[Any], cut: int) -> Any:
        parts = rows[:cut], rows[cut:]
        return lambda engine, rank: engine.forward_backward(parts[rank], kit.nll, normalizer=counts)

    each(begun, share(data, first))
    each(begun, lambda engine, rank: engine.save(tmp_path / str(rank)))
    alone = kit.engine(max_grad_norm=LIMIT)
    alone.load(tmp_path / "0")
    each(others, lambda engine, rank: engine.load(tmp_path / "0"))
    each(others, share(further, 2))
    stepped = each(others, lambda engine, rank: engine.step())
    for engine in (whole, alone):
        engine.forward_backward(further, kit.nll, normalizer=counts)
    expected = whole.step().grad_norm
    assert [step.grad_norm for step in (*stepped, alone.step())] == pytest.approx([expected] * 3, rel=1e-5)
