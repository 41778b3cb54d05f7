"""Losses over groups and whole steps, roles, handles, dropout, clipping, schedules."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from finetooth_hooks import Datum, EngineError, LossData, LossSpec, PlanError
from finetooth_hooks import arrays as xp
from finetooth_hooks.compute.losses import Contribution, LossResult


def sums(outputs: Any, data: Any, name: str = "logprobs") -> Any:
    return xp.sum(xp.where(data.mask, outputs[name], 0.0), axis=1)


def variance(outputs: Any, data: Any, state: Any) -> LossResult:
    """Sees all sequences at once; also reads the entropy and the reference."""
    each = sums(outputs, data) - sums(outputs, data, "logprobs@reference") + 0.1 * sums(outputs, data, "entropy")
    total = xp.sum(xp.square(each - xp.mean(each)))
    seen = state.get("seen", 0.0) + float(data.sequences)
    return LossResult(
        {"variance": Contribution(total, per="sequences"), "nll": Contribution(-xp.sum(each), "tokens", weight=0.3)},
        state={"seen": seen, "last": xp.stop_gradient(each)},
    )


NEEDS = frozenset({"logprobs", "entropy", "logprobs@reference"})
WHOLE = LossSpec("test:variance", variance, NEEDS, "step")


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_a_loss_over_the_step_equals_one_big_batch(kit: SimpleNamespace, dropout: float) -> None:
    data = kit.data(9)
    results, gradients = [], []
    for budget in (50, 100_000):
        engine = kit.engine(micro_batch_tokens=budget, adapter=kit.adapter(dropout=dropout))
        results.append(engine.forward_backward(data, WHOLE))
        gradients.append(kit.gradients(engine))
    assert results[0].micro_batches > 1 and results[1].micro_batches == 1
    if dropout == 0:
        assert results[0].loss == pytest.approx(results[1].loss, rel=1e-5)
        assert kit.relative(*gradients) < 1e-5
    assert results[0].loss == pytest.approx(
        results[0].components["variance"] + 0.3 * results[0].components["nll"], rel=1e-6
    )


def placed(data: Any) -> list[Any]:
    """Data that a later call of the step means again."""
    return [replace(datum, place=place) for place, datum in enumerate(data)]


def check_slope(kit: SimpleNamespace, engine: Any, data: list[Any], loss: Any) -> None:
    """The gradient of the weight that has the largest, against the difference that moving it makes."""
    engine.forward_backward(data, loss)
    name, master = engine._parts.parameters.named()[1]
    gradient = kit.gradients(engine)[name]
    place = np.unravel_index(np.abs(gradient).argmax(), gradient.shape)
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            master[place] += sign * 3e-3
        values.append(engine.forward(data, loss).loss)
        with torch.no_grad():
            master[place] -= sign * 3e-3
    assert (values[0] - values[1]) / 6e-3 == pytest.approx(gradient[place], rel=2e-3)


def test_a_loss_over_the_step_sees_the_masks_of_its_backward(kit: SimpleNamespace) -> None:
    """With dropout the score and the recomputed forward must be the same function: check one weight numerically (the
    step is wide because Llama's norms round to fp32 even in fp64)."""
    engine = kit.engine(micro_batch_tokens=50, adapter=kit.adapter(dropout=0.3), precision="fp64", can_disable=True)
    data = placed(kit.data(6))
    check_slope(kit, engine, data, WHOLE)


def test_the_state_of_a_loss_is_kept_once_a_step(kit: SimpleNamespace) -> None:
    engine = kit.engine(micro_batch_tokens=50)
    data = kit.data(5)
    engine.forward(data, WHOLE)
    assert engine._loss_states == {}  # looking changes nothing
    engine.forward_backward(data, WHOLE)
    engine.step()
    engine.forward_backward(data, WHOLE)
    state = engine._loss_states["test:variance"]
    assert state["seen"] == 10.0
    assert isinstance(state["last"], np.ndarray) and state["last"].shape == (5,)


def test_forwards_before_their_backwards_move_the_state_of_a_loss_one_after_the_other(kit: SimpleNamespace) -> None:
    one, other = kit.engine(), kit.engine()
    first, second = kit.data(3), kit.data(4, seed=1)
    for data in (first, second):
        one.forward_backward(data, WHOLE)
    handles = [other.forward(data, WHOLE).handle for data in (first, second)]
    for handle in handles:
        other.backward(handle)
    assert one._loss_states["test:variance"]["seen"] == 7.0
    assert other._loss_states["test:variance"]["seen"] == 7.0
    assert kit.relative(kit.gradients(one), kit.gradients(other)) < 1e-6


def test_groups_are_seen_whole_and_in_order(kit: SimpleNamespace) -> None:
    data = [d for i in range(5) for d in kit.data(2 + i % 2, seed=i, group=f"pair{i}")]
    seen: list[Any] = []

    def fn(outputs: Any, batch: Any, state: Any) -> LossResult:
        seen.append(batch.group.tolist())
        each = sums(outputs, batch)
        spread = sum(
            xp.sum(xp.square(each[batch.group == g] - xp.mean(each[batch.group == g])))
            for g in range(int(batch.group.max()) + 1)
        )
        return LossResult({"spread": Contribution(spread, per="groups")})

    spec = LossSpec("test:spread", fn, together="group")
    losses = [kit.engine(micro_batch_tokens=b).forward_backward(data, spec).loss for b in (60, 10_000)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert len(seen) > 2
    assert sum(max(groups) + 1 for groups in seen[:-1]) == 5
    assert seen[-1] == [0, 0, 1, 1, 1, 2, 2, 3, 3, 3, 4, 4]


def contrast(outputs: Any, data: Any, state: Any) -> LossResult:
    """Each row against the mean of its group, which no row knows alone; also reads the reference."""
    each = sums(outputs, data) - sums(outputs, data, "logprobs@reference") + 0.1 * sums(outputs, data, "entropy")
    spread = 0.0
    for g in range(int(data.group.max()) + 1):
        mean = xp.mean(each[data.group == g])
        spread = spread + xp.sum(xp.square(each[data.group == g] - mean))
    return LossResult({"contrast": Contribution(spread, per="groups")})


CONTRAST = LossSpec("test:contrast", contrast, NEEDS, "group")


def rollouts() -> list[Datum]:
    """Three groups: six rows with a prompt of 20 tokens, two that begin apart, one alone."""
    random = np.random.default_rng(4)
    sizes = [("a", 20, 6), ("b", 0, 2), ("c", 9, 1)]
    data = []
    for group, prompt, rows in sizes:
        head = [int(t) for t in random.integers(2, 60, size=prompt)]
        for i in range(rows):
            tail = [int(t) for t in random.integers(2, 60, size=6 + 2 * i)]
            weights = [0.0] * prompt + [1.0] * len(tail)
            data.append(Datum.from_tokens([*head, *tail], weights, id=f"{group}{i}", group=group))
    return data


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("handles", [False, True])
def test_a_group_larger_than_the_budget_is_computed_in_pieces(
    kit: SimpleNamespace, dropout: float, handles: bool
) -> None:
    data, found, calls = rollouts(), [], []

    def counted(outputs: Any, batch: Any, state: Any) -> LossResult:
        calls.append(len(batch.mask))
        return contrast(outputs, batch, state)

    for budget in (40, 100_000):
        engine = kit.engine(micro_batch_tokens=budget, adapter=kit.adapter(dropout=dropout), precision="fp64")
        spec = LossSpec("test:contrast", counted, NEEDS, "group")
        if handles:
            result = engine.forward(data, spec, returns=("logprobs", "entropy"))
            engine.backward(result.handle)
        else:
            result = engine.forward_backward(data, spec)
        found.append((result, kit.gradients(engine)))
    (cut, gradient), (whole, expected) = found
    assert set(calls) == {1, 2, 6, 9}  # the loss saw the group whole either way
    assert cut.micro_batches > 4 and whole.micro_batches == 1
    assert cut.loss == pytest.approx(whole.loss, rel=1e-9)
    assert kit.relative(gradient, expected) < 1e-8
    for one, other in zip(cut.outputs, whole.outputs, strict=True):
        np.testing.assert_allclose(one["logprobs"], other["logprobs"], rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(one["entropy"], other["entropy"], rtol=1e-9, atol=1e-12)


def test_pieces_of_a_group_see_the_masks_of_their_backward(kit: SimpleNamespace) -> None:
    """As for a whole step: one weight numerically, with dropout on."""
    engine = kit.engine(micro_batch_tokens=40, adapter=kit.adapter(dropout=0.3), precision="fp64")
    data = placed(rollouts())
    check_slope(kit, engine, data, CONTRAST)


def test_gradients_given_for_a_group_come_in_pieces_too(kit: SimpleNamespace) -> None:
    data = rollouts()
    given = [np.random.default_rng(i).normal(size=datum.targets.shape) for i, datum in enumerate(data)]
    found = []
    for budget in (40, 100_000):
        engine = kit.engine(micro_batch_tokens=budget, precision="fp64")
        handle = engine.forward(data, CONTRAST).handle
        engine.backward(handle, given)
        found.append(kit.gradients(engine))
    assert kit.relative(*found) < 1e-8


def test_the_reference_is_the_base(kit: SimpleNamespace) -> None:
    engine = kit.engine(adapter=kit.adapter(dropout=0.5))
    data = kit.data(3)
    reference = engine.logprobs(data, role="reference")
    policy = engine.logprobs(data)
    bare = kit.engine(adapter=kit.adapter(zero=True)).logprobs(data)
    assert all(np.allclose(a, b, atol=1e-6) for a, b in zip(reference, bare, strict=True))
    assert not all(np.allclose(a, b, atol=1e-4) for a, b in zip(reference, policy, strict=True))
    assert "reference" in engine.capabilities


def test_no_reference_without_an_adapter_to_switch_off(kit: SimpleNamespace) -> None:
    engine = kit.engine(adapter=kit.adapter(full=True))
    assert "reference" not in engine.capabilities
    with pytest.raises(PlanError, match="cannot be switched off"):
        engine.forward_backward(kit.data(), WHOLE)
    with pytest.raises(PlanError, match="'critic'"):
        engine.logprobs(kit.data(), role="critic")


def test_a_handle_gives_the_gradient_of_what_forward_returned(kit: SimpleNamespace) -> None:
    """dL/dlogprob of a weighted sum, with dropout: the backward must see the masks of the forward."""
    engine = kit.engine(adapter=kit.adapter(dropout=0.3), precision="fp64")
    data = placed(kit.data(4))
    random = np.random.default_rng(1)
    slopes = [random.normal(size=len(d)) for d in data]
    forward = engine.forward(data)
    result = engine.backward(forward.handle, slopes)
    assert result.grad_norm == pytest.approx(
        math.sqrt(sum(float((g**2).sum()) for g in kit.gradients(engine).values())), rel=1e-9
    )
    assert not result.overflow
    name, master = engine._parts.parameters.named()[0]
    gradient = kit.gradients(engine)[name]
    place = np.unravel_index(np.abs(gradient).argmax(), gradient.shape)
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            master[place] += sign * 3e-3
        outputs = engine.forward(data).outputs
        values.append(sum(float((o["logprobs"] * s).sum()) for o, s in zip(outputs, slopes, strict=True)))
        with torch.no_grad():
            master[place] -= sign * 3e-3
    assert (values[0] - values[1]) / 6e-3 == pytest.approx(gradient[place], rel=2e-3)


def test_handles_end(kit: SimpleNamespace) -> None:
    engine, data = kit.engine(), kit.data(3)
    first, second = engine.forward(data, kit.nll).handle, engine.forward(data, kit.nll).handle
    engine.backward(first)
    with pytest.raises(EngineError, match="unknown or was used"):
        engine.backward(first)
    engine.step()
    assert engine._pending == {}  # their data are let go
    with pytest.raises(EngineError, match=r"weights version 0.*stale"):
        engine.backward(second)
    third = engine.forward(data).handle
    with pytest.raises(EngineError, match="no loss and no gradients"):
        engine.backward(third)
    with pytest.raises(EngineError, match="shape"):
        engine.backward(third, [np.zeros(2)] * 3)
    with pytest.raises(EngineError, match="'row:1' is not finite"):
        engine.backward(third, [np.full(len(d), np.nan if i == 1 else 0.0) for i, d in enumerate(data)])
    assert engine.forward(data, role="reference").handle is None


def test_dropout_follows_seed_step_and_datum_only(kit: SimpleNamespace) -> None:
    data = kit.data(4)

    def gradient(before: int = 0, moved: str = "", **settings: Any) -> Any:
        engine = kit.engine(adapter=kit.adapter(dropout=0.5), micro_batch_tokens=30, **settings)
        torch.manual_seed(before)
        state = torch.get_rng_state()
        engine.forward_backward([replace(datum, id=moved + datum.id) for datum in data], kit.nll)
        assert torch.equal(torch.get_rng_state(), state)  # nothing leaks out
        return kit.gradients(engine)

    same, other = gradient(before=0), gradient(before=99, moved="/elsewhere/")
    assert all(np.array_equal(same[name], other[name]) for name in same)
    engine = kit.engine(adapter=kit.adapter(dropout=0.5), optimizer=kit.sgd(0.0))
    losses = []
    for _ in range(2):
        losses.append(engine.forward_backward(data, kit.nll).loss)
        engine.step()
    assert losses[0] != losses[1]  # another step, other masks
    assert np.array_equal(engine.logprobs(data)[0], engine.logprobs(data)[0])


def test_clip_is_that_of_torch(kit: SimpleNamespace) -> None:
    data = kit.data()
    clipped, free = (kit.engine(optimizer=kit.sgd(1.0), max_grad_norm=limit) for limit in (0.05, 0.0))
    moves = []
    for engine in (clipped, free):
        before = kit.weights(engine)
        engine.forward_backward(data, kit.nll)
        stepped = engine.step()
        moves.append({name: value - before[name] for name, value in kit.weights(engine).items()})
    lengths = [math.sqrt(sum(float((m**2).sum()) for m in move.values())) for move in moves]
    assert stepped.learning_rate == 0.25  # the first of four warm-up steps
    assert lengths[1] == pytest.approx(0.25 * stepped.grad_norm, rel=1e-5)
    assert lengths[0] == pytest.approx(0.25 * 0.05, rel=1e-4)
    assert (
        kit.relative({k: v / lengths[0] for k, v in moves[0].items()}, {k: v / lengths[1] for k, v in moves[1].items()})
        < 1e-4
    )


def test_step_reports_the_rate_applied_and_tells_the_schedule(kit: SimpleNamespace) -> None:
    schedule = kit.schedule()
    engine = kit.engine(schedule=schedule, optimizer=kit.optimizer(learning_rate=0.08))
    rates, losses = [], []
    for step in range(5):
        losses.append(engine.forward_backward(kit.data(), kit.nll).loss)
        stepped = engine.step(metrics={"eval/loss": float(step)})
        rates.append(stepped.learning_rate)
        assert stepped.step == engine.weights_version == step + 1 and not stepped.skipped
        assert {group["lr"] for group in engine._parts.optimizer.param_groups} == {stepped.learning_rate}
    assert rates == pytest.approx([0.02, 0.04, 0.06, 0.08, 0.08])
    assert [seen["loss"] for seen in schedule.seen] == losses
    assert [seen["eval/loss"] for seen in schedule.seen] == [0.0, 1.0, 2.0, 3.0, 4.0]
    assert losses[-1] < losses[0]


def test_an_infinite_gradient_changes_no_weight(kit: SimpleNamespace) -> None:
    engine = kit.engine()
    engine.forward_backward(kit.data(), kit.nll)
    engine._parts.parameters.masters[0].grad[0, 0] = float("inf")
    before = kit.weights(engine)
    with pytest.raises(EngineError, match="gradient norm is inf at step 1"):
        engine.step()
    assert all(np.array_equal(before[name], value) for name, value in kit.weights(engine).items())
    assert kit.gradients(engine) == {}


def test_two_runs_with_one_seed_are_bit_identical(kit: SimpleNamespace) -> None:
    for precision in ("fp32", "bf16"):
        ends = []
        for _ in range(2):
            engine = kit.engine(adapter=kit.adapter(dropout=0.1), precision=precision)
            for step in range(4):
                engine.forward_backward(kit.data(seed=step), kit.nll)
                engine.step()
            ends.append(kit.weights(engine))
        assert all(np.array_equal(ends[0][name], ends[1][name]) for name in ends[0])


@pytest.mark.parametrize("together", ["sequence", "step"])
def test_a_loss_at_a_temperature_reads_what_sampling_draws_from(kit: SimpleNamespace, together: str) -> None:
    """log softmax(z / T) and its entropy, in the policy and in the reference; and the gradient that goes with it."""
    seen: dict[str, np.ndarray] = {}

    def loss(outputs: Any, data: LossData, state: Any) -> LossResult:
        if together == "step" or len(data.mask) > 1:
            seen.update({name: values.detach().double().numpy() for name, values in outputs.items()})
        return LossResult({"nll": Contribution(-xp.sum(outputs["logprobs"]), per="none")})

    needs = frozenset({"logprobs", "entropy", "logprobs@reference"})
    spec = LossSpec(f"test:tempered-{together}", loss, needs, together, temperature=0.6)  # type: ignore[arg-type]
    engine = kit.engine(micro_batch_tokens=30 if together == "step" else 4096)
    data = kit.data(3)
    engine.forward_backward(data, spec)
    found = kit.gradients(engine)
    logits = engine.forward(data, returns=("logits",), train=False).outputs
    first = data[0]
    z = logits[0]["logits"].astype(np.float64) / 0.6
    log_p = z - np.log(np.exp(z).sum(-1, keepdims=True))
    n = len(first)
    expected = np.where(first.mask, np.take_along_axis(log_p, first.targets[:, None], 1)[:, 0], 0.0)
    np.testing.assert_allclose(seen["logprobs"][0, :n], expected, atol=2e-5)
    entropy = np.where(first.mask, -(np.exp(log_p) * log_p).sum(-1), 0.0)
    np.testing.assert_allclose(seen["entropy"][0, :n], entropy, atol=2e-5)
    assert not np.allclose(seen["logprobs@reference"][0, :n], expected, atol=1e-3)
    whole = kit.engine(micro_batch_tokens=4096)  # in one piece
    whole.backward(whole.forward(data, replace(spec, together="sequence")).handle)
    assert kit.relative(found, kit.gradients(whole)) < 1e-5
    whole.zero_grad()
    whole.forward_backward(data, replace(spec, together="sequence", temperature=1.0))
    assert kit.relative(kit.gradients(whole), found) > 0.01  # another temperature, another gradient
