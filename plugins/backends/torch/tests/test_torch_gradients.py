"""Gradients against plain transformers and autograd, and layouts against each other."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from finetooth_hooks import DataError, Datum, EngineError, LossSpec, PlanError, TokenChunk
from finetooth_hooks import arrays as xp
from finetooth_hooks.compute.losses import Contribution, LossResult
from torch import nn


def plain_loss(engine: Any, data: list[Datum]) -> torch.Tensor:
    """Weighted cross entropy with the whole logits of transformers' own forward, one sequence at a time."""
    total, weight = torch.zeros(()), 0.0
    for datum in data:
        logits = engine._parts.network.base(input_ids=torch.from_numpy(datum.tokens.copy())[None]).logits[0]
        losses = nn.functional.cross_entropy(logits.float(), torch.from_numpy(datum.targets.copy()), reduction="none")
        weights = torch.from_numpy(np.asarray(datum.fields["weights"], dtype=np.float32).copy())
        total, weight = total + (losses * weights).sum(), weight + float(weights.sum())
    return total / weight


@pytest.mark.parametrize(
    ("full", "proportional_to"), [(False, None), (True, None), (True, "weights"), (True, "unlike")]
)
@pytest.mark.parametrize("config", ["llama", "qwen2", "tied"])
def test_gradient_is_that_of_plain_transformers(
    kit: SimpleNamespace, full: bool, config: str, proportional_to: str | None
) -> None:
    settings = kit.config("llama", tie_word_embeddings=True) if config == "tied" else kit.config(config)
    engine = kit.engine(config=settings, adapter=kit.adapter(full=full))
    data = [
        replace(datum, fields={**datum.fields, "unlike": np.arange(len(datum), dtype=float)}) for datum in kit.data()
    ]
    result = engine.forward_backward(data, replace(kit.nll, proportional_to=proportional_to))
    got = kit.gradients(engine)
    engine.zero_grad()
    loss = plain_loss(engine, data)
    loss.backward()
    assert result.loss == pytest.approx(loss.item(), rel=1e-6)
    assert kit.relative(got, kit.gradients(engine)) < 1e-6


def test_a_loss_in_proportion_to_a_field_that_is_not_there(kit: SimpleNamespace) -> None:
    with pytest.raises(PlanError, match=r"proportional_to='weihgts'.*declare one of .*weights"):
        kit.engine().forward_backward(kit.data(), replace(kit.nll, proportional_to="weihgts"))


def test_bf16_gradient_is_close_and_accumulates_in_fp32(kit: SimpleNamespace) -> None:
    exact, rough = (kit.engine(precision=precision) for precision in ("fp32", "bf16"))
    data = kit.data()
    for engine in (exact, rough):
        engine.forward_backward(data, kit.nll)
    assert kit.relative(kit.gradients(rough), kit.gradients(exact)) < 0.05
    assert all(p.grad.dtype == torch.float32 for _, p in rough._parts.parameters.named())
    assert {p.dtype for p in rough._parts.network.base.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("config", ["llama", "qwen2"])
def test_budget_never_changes_the_gradient(kit: SimpleNamespace, config: str) -> None:
    data = kit.data(24, longest=60)
    gradients, losses, cuts = [], [], []
    for budget in (256, 1024, 8192):
        engine = kit.engine(config=kit.config(config), micro_batch_tokens=budget)
        result = engine.forward_backward(data, kit.nll)
        gradients.append(kit.gradients(engine))
        losses.append(result.loss)
        cuts.append(result.micro_batches)
        assert result.metrics["mean"] == pytest.approx(losses[0] * 1.0, rel=1) and result.padded >= result.tokens
    assert cuts[0] > cuts[1] >= cuts[2] == 1
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-6)
    assert max(kit.relative(g, gradients[-1]) for g in gradients) <= 1e-5


def test_budget_never_changes_the_trajectory(kit: SimpleNamespace) -> None:
    ends = []
    for budget in (40, 8192):
        engine = kit.engine(micro_batch_tokens=budget, optimizer=kit.sgd(0.5), max_grad_norm=1.0)
        for step in range(5):
            engine.forward_backward(kit.data(seed=step), kit.nll)
            engine.step()
        ends.append(kit.weights(engine))
    assert kit.relative(*ends) < 1e-5


def test_metrics_are_combined_over_micro_batches(kit: SimpleNamespace) -> None:
    data = kit.data()
    results = [kit.engine(micro_batch_tokens=budget).forward_backward(data, kit.nll) for budget in (30, 10_000)]
    assert results[0].metrics["mean"] == pytest.approx(results[1].metrics["mean"], rel=1e-6)
    assert results[0].metrics["most"] < results[1].metrics["most"]  # the largest of the parts, not their sum
    targets = sum(int(datum.mask.sum()) for datum in data)
    assert results[0].targets == results[1].targets == targets


def test_many_targets_a_position_equal_one_by_one(kit: SimpleNamespace) -> None:
    tokens = np.arange(2, 12)
    targets = np.stack([np.roll(tokens, -1), tokens], axis=1)
    wide = Datum((TokenChunk(tokens),), targets, id="wide")
    single = [Datum((TokenChunk(tokens),), targets[:, k], id=f"single:{k}") for k in range(2)]

    def fn(outputs: Any, data: Any, state: Any) -> LossResult:
        return LossResult({"sum": Contribution(-xp.sum(outputs["logprobs"]), per="none")})

    spec = LossSpec("test:sum", fn)
    engines = kit.engine(), kit.engine()
    first = engines[0].forward_backward([wide], spec)
    second = engines[1].forward_backward(single, spec)
    assert first.loss == pytest.approx(second.loss, rel=1e-5)
    assert first.outputs[0]["logprobs"].shape == (10, 2)
    assert np.allclose(first.outputs[0]["logprobs"][:, 1], second.outputs[1]["logprobs"], atol=1e-5)
    assert kit.relative(*map(kit.gradients, engines)) < 1e-5


def test_wrapped_head_equals_the_plain_one(kit: SimpleNamespace) -> None:
    targets = ("q_proj", "lm_head")
    results = []
    for zero, names in ((True, targets), (True, ("q_proj",))):
        engine = kit.engine(adapter=kit.adapter(targets=names, zero=zero))
        engine._parts.network.head._rows = 5  # several chunks
        results.append((engine.forward_backward(kit.data(), kit.nll), kit.gradients(engine)))
    wrapped, plain = results
    assert wrapped[0].loss == pytest.approx(plain[0].loss, rel=1e-6)
    engine = kit.engine(adapter=kit.adapter(targets=targets))
    data = kit.data()
    engine.forward_backward(data, kit.nll)
    got = kit.gradients(engine)
    engine.zero_grad()
    plain_loss(engine, data).backward()
    assert any("lm_head" in name for name in got)
    assert kit.relative(got, kit.gradients(engine)) < 1e-6


@pytest.mark.parametrize("wrapped", [False, True])
def test_head_with_bias_scale_and_softcap(kit: SimpleNamespace, wrapped: bool) -> None:
    from finetooth_hooks.protocols import Head

    def bias(model: Any) -> None:
        head = nn.Linear(model.lm_head.in_features, kit.vocab)
        head.weight.data.copy_(model.lm_head.weight)
        head.bias.data.copy_(torch.linspace(-1, 1, kit.vocab))
        model.lm_head = head

        class Capped(type(model)):  # type: ignore[misc]
            def forward(self, *given: Any, **more: Any) -> Any:
                found = super().forward(*given, **more)
                found.logits = 2.0 * torch.tanh(0.7 * found.logits / 2.0)
                return found

        model.__class__ = Capped

    adapter = kit.adapter(targets=("lm_head",) if wrapped else ("q_proj",))
    engine = kit.engine(prepare=bias, adapter=adapter, facts={"head": Head("lm_head", scale=0.7, softcap=2.0)})
    data = kit.data(2)
    outputs = engine.forward(data, returns=("logprobs", "entropy", "logits")).outputs
    for datum, got in zip(data, outputs, strict=True):
        with torch.no_grad():
            logits = engine._parts.network.base(input_ids=torch.from_numpy(datum.tokens.copy())[None]).logits[0]
        log_p = torch.log_softmax(logits, -1).numpy()
        expected = np.where(datum.mask, log_p[np.arange(len(datum)), datum.targets], 0.0)
        assert np.allclose(got["logits"], logits.numpy(), atol=1e-5)
        assert np.allclose(got["logprobs"], expected, atol=1e-5)
        assert np.allclose(got["entropy"], np.where(datum.mask, -(np.exp(log_p) * log_p).sum(1), 0.0), atol=1e-5)


def test_a_loss_sees_rectangles(kit: SimpleNamespace) -> None:
    """Masked, padded and scattered as the contract says; a field that only some data give is refused elsewhere."""
    tokens = TokenChunk(np.array([3, 4, 5]))
    plain = Datum((tokens,), np.array([4, 5, 6]), mask=np.array([True, False, True]), scalars={"label": 2.0})
    weighted = Datum.from_tokens([7, 8, 9], [0.0, 0.0, 0.25], scalars={"label": -1.0}, group="g")
    wide = Datum((TokenChunk(np.array([3, 4, 5, 6])),), np.array([4, 5, 6, 7]), scalars={"label": 0.0}, group="g")
    seen: list[Any] = []

    def fn(outputs: Any, data: Any, state: Any) -> LossResult:
        seen.append((outputs, data))
        return LossResult({"sum": Contribution(-xp.sum(outputs["logprobs"]), per="none")})

    kit.engine().forward_backward([plain, weighted, wide], LossSpec("test:sum", fn, frozenset({"logprobs", "entropy"})))
    ((outputs, data),) = seen
    assert data.mask.tolist() == [[True, False, True, False], [False, True, False, False], [True] * 4]
    assert data.targets.tolist() == [[4, 0, 6, 0], [0, 9, 0, 0], [4, 5, 6, 7]]
    assert data.fields["weights"].tolist() == [[1, 0, 1, 0], [0, 0.25, 0, 0], [1, 1, 1, 1]]
    assert data.scalars["label"].tolist() == [2.0, -1.0, 0.0]
    assert data.group.tolist() == [0, 1, 1]
    for values in outputs.values():
        assert ((values != 0) == data.mask).all()


def test_given_positions_are_used_and_change_nothing_else(kit: SimpleNamespace) -> None:
    plain = kit.data(4)
    engine = kit.engine()
    explicit = [replace(d, positions=np.arange(len(d))) for d in plain]
    assert all(
        np.allclose(a, b, atol=1e-6) for a, b in zip(engine.logprobs(plain), engine.logprobs(explicit), strict=True)
    )
    # a jump is no second sequence: relative positions move, attention still reaches back
    jump = np.concatenate([np.arange(4), np.arange(4, len(plain[0])) + 50])
    datum = replace(plain[0], positions=jump)
    with torch.no_grad():
        tokens = torch.from_numpy(datum.tokens.copy())[None]
        raw = engine._parts.network.base(
            input_ids=tokens, position_ids=torch.from_numpy(jump)[None], attention_mask=torch.ones_like(tokens)
        ).logits[0]
    expected = torch.log_softmax(raw, -1).numpy()[np.arange(len(datum)), datum.targets]
    for data in ([datum], [datum, *plain[1:]]):
        assert np.allclose(engine.logprobs(data)[0], np.where(datum.mask, expected, 0.0), atol=1e-5)


def test_hidden_and_logits_come_at_every_position(kit: SimpleNamespace) -> None:
    engine, data = kit.engine(micro_batch_tokens=40), kit.data()
    outputs = engine.forward(data, returns=("logprobs", "entropy", "hidden", "logits")).outputs
    for datum, found in zip(data, outputs, strict=True):
        with torch.no_grad():
            raw = engine._parts.network.base(input_ids=torch.from_numpy(datum.tokens.copy())[None]).logits[0].numpy()
        assert np.allclose(found["logits"], raw, atol=1e-5)
        assert found["hidden"].shape == (len(datum), 24)
        log_p = raw - np.log(np.exp(raw).sum(1, keepdims=True))
        assert np.allclose(found["entropy"], np.where(datum.mask, -(np.exp(log_p) * log_p).sum(1), 0), atol=1e-5)


def test_checkpointing_computes_layers_twice_and_gives_the_same_gradient(kit: SimpleNamespace) -> None:
    engines, calls = [], []
    for on in (False, True):
        engine = kit.engine(gradient_checkpointing=on, adapter=kit.adapter(dropout=0.2), micro_batch_tokens=10_000)
        counted: list[int] = []
        engine._parts.network.base.model.layers[0].mlp.down_proj.register_forward_pre_hook(
            lambda *_, seen=counted: seen.append(1)
        )
        engine.forward_backward(kit.data(), kit.nll)
        engines.append(engine)
        calls.append(len(counted))
    assert calls == [1, 2]
    assert kit.relative(*map(kit.gradients, engines)) < 1e-6


def test_nothing_that_counts_still_runs(kit: SimpleNamespace) -> None:
    engine = kit.engine()
    data = [Datum.from_tokens([2, 3, 4], [0.0, 0.0, 0.0], id="none")]
    result = engine.forward_backward(data, kit.nll)
    assert result.loss == 0.0 and result.targets == 0
    assert engine.step().grad_norm == 0.0


def test_weights_that_cancel_are_refused(kit: SimpleNamespace) -> None:
    data = [Datum.from_tokens([2, 3, 4], [0.0, 1.0, -1.0], id="cancel")]
    with pytest.raises(EngineError, match="'weights' of the step is 0"):
        kit.engine().forward_backward(data, kit.nll)


def test_unknown_outputs_are_refused_by_name(kit: SimpleNamespace) -> None:
    spec = LossSpec("test:v", kit.nll.fn, frozenset({"values"}))
    with pytest.raises(PlanError, match="'values'"):
        kit.engine().forward_backward(kit.data(), spec)


@pytest.mark.parametrize("budget", [30, 10_000])
@pytest.mark.parametrize(
    ("odd", "problem"),
    [
        ({"scalars": {"label": 1.0}}, r"^row:0: it lacks the scalar 'label'"),
        ({"fields": {"advantages": np.ones(6)}}, r"^row:0: it lacks the field 'advantages'"),
    ],
)
def test_data_must_agree_in_their_fields_whatever_the_budget(
    kit: SimpleNamespace, budget: int, odd: dict[str, Any], problem: str
) -> None:
    data = [
        *kit.data(2),
        Datum((TokenChunk(np.arange(2, 8)),), np.arange(3, 9), np.ones(6, dtype=bool), id="odd", **odd),
    ]
    engine = kit.engine(micro_batch_tokens=budget)
    with pytest.raises(DataError, match=problem):
        engine.forward_backward(data, kit.nll)
    assert len(engine.logprobs(data)) == 3  # no loss reads them


@pytest.mark.parametrize("budget", [6, 10_000])
def test_a_field_has_one_shape_per_position(kit: SimpleNamespace, budget: int) -> None:
    data = [
        Datum(
            (TokenChunk(np.arange(2, 8)),), np.arange(3, 9), np.ones(6, dtype=bool), fields={"x": np.ones(shape)}, id=i
        )
        for i, shape in (("one", (6,)), ("two", (6, 6)))
    ]
    with pytest.raises(DataError, match=r"^two: field 'x' has shape \(6,\) per position, in other data .* \(\)"):
        kit.engine(micro_batch_tokens=budget).forward_backward(data, kit.nll)


def test_a_step_without_gradients_is_refused_and_changes_nothing(kit: SimpleNamespace) -> None:
    schedule = kit.schedule()
    engine, data = kit.engine(schedule=schedule), kit.data()
    engine.forward_backward(data, kit.nll)
    engine.step()
    handle, before = engine.forward(data, kit.nll).handle, kit.weights(engine)
    for _ in range(2):
        with pytest.raises(EngineError, match="step 2: no gradients were accumulated"):
            engine.step()
    assert engine.weights_version == 1 and len(schedule.seen) == 1
    assert all(np.array_equal(before[name], value) for name, value in kit.weights(engine).items())
    engine.backward(handle)  # its forward is not stale
    assert engine.step().step == 2


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("call", ["forward_backward", "backward", "backward with gradients"])
@pytest.mark.parametrize("earlier", [0, 2])
def test_a_call_that_fails_midway_leaves_what_was_accumulated(
    kit: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, precision: str, call: str, earlier: int
) -> None:
    engine, data = kit.engine(precision=precision, micro_batch_tokens=40), kit.data()
    for i in range(earlier):
        engine.forward_backward(kit.data(seed=i), kit.nll)
    before, counters = kit.gradients(engine), replace(engine._counters)
    handle = engine.forward(data, kit.nll).handle
    slopes = [np.ones(len(datum)) for datum in data]

    def run() -> None:
        if call == "forward_backward":
            engine.forward_backward(data, kit.nll)
        else:
            engine.backward(handle, slopes if call.endswith("gradients") else None)

    real, calls = engine._runner._backward, []

    def fails_the_second_time(objective: Any) -> None:
        calls.append(1)
        real(objective)
        if len(calls) == 2:
            raise MemoryError("no room")

    with monkeypatch.context() as patched:
        patched.setattr(engine._runner, "_backward", fails_the_second_time)
        with pytest.raises(EngineError, match="ran out of memory"):
            run()
    after = kit.gradients(engine)
    assert after.keys() == before.keys() and all(np.array_equal(after[name], before[name]) for name in before)
    assert engine._counters == counters
    run()  # and the same call goes through afterwards
    assert engine._counters.accumulated == earlier + 1
