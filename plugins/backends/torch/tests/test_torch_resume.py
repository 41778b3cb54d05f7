"""What else decides how a resumed engine goes on: torch's global generators, memory layout, options changed knowingly,
and where a snapshot's copy lies."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from finetooth_hooks import Interrupted, LossSpec
from finetooth_hooks import arrays as xp
from finetooth_hooks.compute.losses import Contribution, LossResult


def noisy(outputs: Any, data: Any, state: Any) -> LossResult:
    """A loss of a user who draws from torch's own generator."""
    each = xp.sum(xp.where(data.mask, outputs["logprobs"], 0.0), axis=1)
    return LossResult({"noisy": Contribution(-xp.sum(each * torch.rand(each.shape)), per="sequences")})


NOISY = LossSpec("test:noisy", noisy, together="step")


def losses(kit: SimpleNamespace, engine: Any, steps: range) -> list[float]:
    found = []
    for step in steps:
        found.append(engine.forward_backward(kit.data(4, seed=step), NOISY).loss)
        engine.step()
    return found


def test_building_an_engine_seeds_the_global_generator(kit: SimpleNamespace) -> None:
    drawn = []
    for seed in (0, 0, 1):
        torch.manual_seed(99)
        kit.engine(seed=seed)
        drawn.append(torch.rand(4))
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])


@pytest.mark.slow
def test_what_a_loss_draws_goes_on_where_it_was(kit: SimpleNamespace, tmp_path: Path) -> None:
    engine = kit.engine()
    losses(kit, engine, range(2))
    engine.save(tmp_path / "state")
    snapshot = engine.snapshot()
    wanted = losses(kit, engine, range(2, 4))
    engine.rollback(snapshot)
    assert losses(kit, engine, range(2, 4)) == wanted
    torch.manual_seed(99)
    other = kit.engine()
    other.load(tmp_path / "state")
    assert losses(kit, other, range(2, 4)) == wanted
    other.load(tmp_path / "state")
    torch.manual_seed(99)
    assert losses(kit, other, range(2, 4)) != wanted  # so the loss does draw from it


def test_a_call_that_was_broken_off_has_drawn_nothing(kit: SimpleNamespace) -> None:
    engine = kit.engine(micro_batch_tokens=40)
    asked: list[bool] = []
    engine.interrupt_when(lambda: bool(asked.append(True)))
    engine.forward_backward(kit.data(6), NOISY)
    engine.zero_grad()
    last = 2 * len(asked) - 1  # behind the loss
    before = torch.get_rng_state()
    engine.interrupt_when(lambda: asked.append(True) or len(asked) > last)
    with pytest.raises(Interrupted):
        engine.forward_backward(kit.data(6), NOISY)
    assert torch.equal(torch.get_rng_state(), before)


def test_primitives_leave_the_global_generator_alone(kit: SimpleNamespace) -> None:
    engine = kit.engine(adapter=kit.adapter(dropout=0.3))
    before = torch.get_rng_state()
    engine.forward_backward(kit.data(), kit.nll)
    engine.step()
    engine.logprobs(kit.data())
    engine.peak_flops()
    assert torch.equal(torch.get_rng_state(), before)


def test_tensors_lie_in_memory_as_before(kit: SimpleNamespace, tmp_path: Path) -> None:
    """A sum over a tensor that lies otherwise runs in another order, and its last bits may differ."""

    def transposed(model: Any) -> None:
        model.lm_head.weight.data = model.lm_head.weight.data.t().contiguous().t()

    def make() -> Any:
        return kit.engine(adapter=kit.adapter(full=True), prepare=transposed)

    def strides(engine: Any) -> dict[str, Any]:
        optimizer = engine._parts.optimizer
        return {
            name: (p.stride(), p.grad.stride(), optimizer.state[p]["exp_avg"].stride())
            for name, p in engine._parts.parameters.named()
        }

    engine = make()
    engine.forward_backward(kit.data(), kit.nll)
    engine.step()
    engine.forward_backward(kit.data(), kit.nll)
    engine.save(tmp_path / "state")
    other = make()
    other.load(tmp_path / "state")
    assert strides(other) == strides(engine)
    assert any(len(first) == 2 and first[0] == 1 for first, *_ in strides(engine).values())


def test_an_option_of_the_optimizer_that_the_recipe_changed_holds(kit: SimpleNamespace, tmp_path: Path) -> None:
    """A run that goes on with accepted changes trains with them, not with what was saved."""

    def make(**options: Any) -> Any:
        return kit.engine(optimizer=kit.optimizer(torch.optim.AdamW, 1e-2, options))

    engine = make(weight_decay=0.0, betas=(0.9, 0.99))
    engine.forward_backward(kit.data(), kit.nll)
    engine.step()
    engine._parts.optimizer.param_groups[0]["eps"] = 3e-8  # as an optimizer may that learns its own options
    engine.save(tmp_path / "state")
    other = make(weight_decay=0.5, betas=(0.9, 0.99))
    other.load(tmp_path / "state")
    (group,) = other._parts.optimizer.param_groups
    assert (group["weight_decay"], group["betas"], group["eps"]) == (0.5, (0.9, 0.99), 3e-8)
    other.save(tmp_path / "again")
    third = make(weight_decay=0.5, betas=(0.9, 0.99))
    third.load(tmp_path / "again")
    assert third._parts.optimizer.param_groups[0]["weight_decay"] == 0.5


def test_a_snapshot_on_the_host_is_not_copied_once_more(kit: SimpleNamespace) -> None:
    engine = kit.engine()
    engine.forward_backward(kit.data(), kit.nll)
    engine.step()
    snapshot = engine.snapshot()
    assert snapshot.to_host() is snapshot
    weights = {name: value.numpy().copy() for name, value in snapshot.files["trained"].items()}
    engine.forward_backward(kit.data(), kit.nll)
    engine.step()
    assert all(np.array_equal(weights[name], value.numpy()) for name, value in snapshot.files["trained"].items())


def test_rows_that_wait_for_a_step_are_part_of_the_state(kit: SimpleNamespace, tmp_path: Path) -> None:
    from finetooth_hooks import NotFinite

    engine, other = kit.engine(), kit.engine()
    engine.forward_backward(kit.data(2), kit.nll)
    engine.save(tmp_path / "state")
    other.forward_backward(kit.data(5), kit.nll)
    other.load(tmp_path / "state")
    other._parts.parameters.masters[0].grad.view(-1)[0] = float("nan")
    with pytest.raises(NotFinite) as caught:
        other.step()
    assert caught.value.rows == ("row:0", "row:1")
