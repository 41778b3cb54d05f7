"""fp16: the scale, its overflow, and that it changes no number."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from finetooth_hooks import EngineError, NotFinite, Sampling
from finetooth_torch.updates.parameters import TrainedParameters, round_frozen
from finetooth_torch.updates.scaler import LossScaler
from finetooth_torchshared.kept_in_fp32 import kept_in_fp32


def test_the_scale_starts_at_1024_and_follows_the_rule() -> None:
    scaler = LossScaler()
    assert scaler.scale == 1024
    for _ in range(1999):
        scaler.update(overflow=False)
    assert scaler.scale == 1024
    scaler.update(overflow=False)
    assert scaler.scale == 2048
    scaler.update(overflow=True)
    assert (scaler.scale, scaler.good_steps) == (1024, 0)
    for _ in range(23):
        scaler.update(overflow=True)
    lowered = 0
    while scaler.can_lower:
        scaler.update(overflow=True)
        lowered += 1
    assert scaler.scale == 2.0**-14 and lowered == 1


def test_the_rule_is_that_of_torch() -> None:
    """Against torch's GradScaler, over a random run of overflows."""
    ours, theirs = LossScaler(growth_interval=3), torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=3)
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=0.0)
    for overflow in np.random.default_rng(0).random(60) < 0.25:
        assert ours.scale == theirs.get_scale() or theirs._scale is None
        theirs.scale(torch.zeros(()))
        parameter.grad = torch.full((1,), float("inf") if overflow else 1.0)
        theirs.step(optimizer)
        theirs.update()
        ours.update(overflow=bool(overflow))
        assert ours.scale == theirs.get_scale()


def test_gradients_are_unscaled_and_small_ones_survive(kit: SimpleNamespace) -> None:
    half, exact = kit.engine(precision="fp16"), kit.engine()
    data = kit.data()
    results = [engine.forward_backward(data, kit.nll) for engine in (half, exact)]
    assert results[0].loss == pytest.approx(results[1].loss, rel=5e-3)
    assert kit.relative(kit.gradients(half), kit.gradients(exact)) < 0.02
    assert {p.dtype for p in half._parts.network.base.parameters()} == {torch.float16}


def test_an_overflow_skips_the_step_and_lowers_the_scale(kit: SimpleNamespace) -> None:
    schedule = kit.schedule()
    engine = kit.engine(precision="fp16", schedule=schedule)
    engine.forward_backward(kit.data(), kit.nll)
    engine.step()
    engine._parts.scaler.scale = 2.0**40  # dL/dlogits times this is beyond 65,504
    before, state = kit.weights(engine), engine._parts.optimizer.state_dict()["state"][0]["exp_avg"].clone()
    handle = engine.forward(kit.data(), kit.nll).handle
    result = engine.backward(handle)
    assert result.overflow
    stepped = engine.step()
    assert stepped.skipped and stepped.step == engine.weights_version == 2
    assert engine._parts.scaler.scale == 2.0**39 and engine._parts.scaler.good_steps == 0
    assert all(np.array_equal(before[name], value) for name, value in kit.weights(engine).items())
    assert torch.equal(state, engine._parts.optimizer.state_dict()["state"][0]["exp_avg"])
    engine._parts.scaler.scale = 1024.0
    engine.forward_backward(kit.data(), kit.nll)
    assert not engine.step().skipped
    assert any(not np.array_equal(before[name], value) for name, value in kit.weights(engine).items())


def test_an_overflow_at_the_lowest_scale_is_a_gradient_that_is_not_finite(kit: SimpleNamespace) -> None:
    """Then no scale is to blame: the rows are named, and nothing has moved."""
    engine = kit.engine(precision="fp16")
    engine.forward_backward(kit.data(), kit.nll)
    engine.step()
    before, state = kit.weights(engine), engine._parts.scaler.state()
    engine._parts.scaler.scale = 2.0**-14
    engine.forward_backward(kit.data(3), kit.nll)
    engine._parts.parameters.masters[0].grad.view(-1)[0] = float("inf")
    with pytest.raises(NotFinite, match="at the lowest loss scale too") as caught:
        engine.step()
    assert caught.value.rows == ("row:0", "row:1", "row:2")
    assert engine.weights_version == 1 and engine._parts.scaler.scale == 2.0**-14
    assert engine._parts.scaler.good_steps == state["good_steps"]
    assert all(np.array_equal(before[name], value) for name, value in kit.weights(engine).items())
    assert not engine._parts.parameters.gradients()


def test_bf16_trains_below_its_own_resolution(kit: SimpleNamespace) -> None:
    """Updates of 1e-5 on weights near 0.05 vanish in bf16 (steps of 2.4e-4): the masters must keep them."""
    engine = kit.engine(precision="bf16", optimizer=kit.optimizer(torch.optim.SGD, 1.0))
    before = kit.weights(engine)
    for _ in range(3):
        for master in engine._parts.parameters.masters:
            master.grad = torch.full_like(master, 1e-5)
        engine.step()
    moved = kit.weights(engine)
    rates = 0.25 + 0.5 + 0.75
    assert all(np.allclose(before[n] - moved[n], 1e-5 * rates, rtol=2e-2, atol=0) for n in before)


def test_full_training_in_bf16_learns(kit: SimpleNamespace) -> None:
    engine = kit.engine(precision="bf16", adapter=kit.adapter(full=True), optimizer=kit.optimizer(learning_rate=3e-3))
    data = kit.data()
    losses = []
    for _ in range(12):
        losses.append(engine.forward_backward(data, kit.nll).loss)
        engine.step()
    assert losses[-1] < 0.8 * losses[0]
    live = dict(engine._parts.network.model.named_parameters())
    for name, master in engine._parts.parameters.named():
        assert master.dtype == torch.float32
        assert torch.equal(live[name], master.to(torch.bfloat16))


def test_full_training_in_bf16_starts_from_the_weights_of_the_checkpoint(kit: SimpleNamespace) -> None:
    """Masters made of rounded weights would lose what the checkpoint says, and stand where small updates round away."""
    exact, rounded = (kit.engine(precision=p, adapter=kit.adapter(full=True)) for p in ("fp32", "bf16"))
    theirs = dict(exact._parts.parameters.named())
    live = dict(rounded._parts.network.model.named_parameters())
    for name, master in rounded._parts.parameters.named():
        assert torch.equal(master, theirs[name])
        assert live[name].dtype == torch.bfloat16 and torch.equal(live[name], master.to(torch.bfloat16))
    assert any(not torch.equal(master, master.bfloat16().float()) for master in theirs.values())


class Gated(torch.nn.Module):
    """A small model with a router that its authors keep in fp32, as those with experts do."""

    _keep_in_fp32_modules_strict = ("gate.weight", "layers.*.A_log")
    _keep_in_fp32_modules = ("norm",)

    def __init__(self) -> None:
        super().__init__()
        self.gate = torch.nn.Linear(4, 2, bias=False)
        self.up = torch.nn.Linear(4, 2, bias=False)
        self.norm = torch.nn.LayerNorm(4, bias=False)
        self.layers = torch.nn.ModuleList([torch.nn.Module()])
        self.layers[0].A_log = torch.nn.Parameter(torch.tensor([0.1234567]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("trains", [True, False])
def test_what_a_model_keeps_in_fp32_stays_so(dtype: torch.dtype, trains: bool) -> None:
    """As transformers loads it: the strict ones in bf16 and fp16, the others in fp16 alone. The optimizer sees fp32 in
    any case, and a step reaches the model unrounded."""
    model = Gated()
    model.up.requires_grad_(True)
    for parameter in (model.gate.weight, model.norm.weight, model.layers[0].A_log):
        parameter.requires_grad_(trains)
    wide = {"gate.weight", "layers.0.A_log"} | ({"norm.weight"} if dtype == torch.float16 else set())
    assert kept_in_fp32(model, dtype) == wide and kept_in_fp32(model, torch.float32) == frozenset()
    kept = {id(parameter) for name, parameter in model.named_parameters() if name in wide}
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    every = {id(parameter) for parameter in model.parameters()}
    parameters = TrainedParameters(model, every, dtype, LossScaler(enabled=False), kept=kept)
    round_frozen(model, dtype, kept)
    for name, parameter in model.named_parameters():
        assert parameter.dtype == (torch.float32 if name in wide else dtype), name
        assert torch.equal(parameter, before[name].to(parameter.dtype))
    for name, master in parameters.named():
        assert master.dtype == torch.float32 and torch.equal(master, before[name])
    with torch.no_grad():
        for master in parameters.masters:
            master.add_(1e-6)
    parameters.publish()
    with parameters.as_given():
        given = {name: parameter.clone() for name, parameter in model.named_parameters()}
    for name, master in parameters.named():
        assert torch.equal(model.get_parameter(name), master.to(dtype).float() if name not in wide else master)
        assert given[name].dtype == (torch.float32 if name in wide else dtype)
    if trains:
        (model.layers[0].A_log * 3).sum().backward()
        master = dict(parameters.named())["layers.0.A_log"]
        assert torch.equal(master.grad, torch.tensor([3.0])) and model.layers[0].A_log.grad is None


def test_an_adapter_is_exported_as_it_trains_and_not_as_it_computes() -> None:
    """Its masters, to the last bit, and not their bf16 copies."""
    model = torch.nn.Linear(4, 3)
    parameters = TrainedParameters(model, set(), torch.bfloat16, LossScaler(enabled=False))
    with torch.no_grad():
        for master in parameters.masters:
            master.add_(1e-6)
    parameters.publish()
    with parameters.as_given():
        given = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for name, master in parameters.named():
        assert torch.equal(given[name], master) and not torch.equal(given[name], master.bfloat16().float())
        assert torch.equal(model.get_parameter(name), master.bfloat16())


@pytest.mark.parametrize("kind", ["ernie4_5_moe"])
def test_a_model_with_a_router_in_fp32_trains(kit: SimpleNamespace, kind: str) -> None:
    """Whole, in bf16: what transformers loads in fp32 is what trains in fp32."""
    import transformers

    sizes = {"moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 16, "moe_layer_start_index": 0}
    sizes |= {"moe_num_shared_experts": 1, "moe_layer_interval": 1, "moe_layer_end_index": -1}
    like = {name: getattr(kit.config(), name) for name in (
        "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
        "num_key_value_heads", "max_position_embeddings")}  # fmt: skip
    config = transformers.AutoConfig.for_model(kind, **like, **sizes)
    engine = kit.engine(config=config, facts={"block": None}, adapter=kit.adapter(full=True), precision="bf16")
    network = engine._parts.network
    loaded = type(network.base)._from_config(config, dtype=torch.bfloat16)
    wide = {name for name, _ in loaded.named_parameters() if "gate.weight" in name or "moe_statics" in name}
    dtypes = {name: parameter.dtype for name, parameter in network.base.named_parameters()}
    assert wide and {name for name, dtype in dtypes.items() if dtype == torch.float32} == wide
    before = kit.weights(engine)
    for _ in range(2):
        engine.forward_backward(kit.data(), kit.nll)
        assert not engine.step().skipped
    after = kit.weights(engine)
    assert any("gate.weight" in name and not np.array_equal(before[name], after[name]) for name in after)


def test_what_does_not_train_beside_trained_base_weights_is_rounded(kit: SimpleNamespace) -> None:
    class LastLayer(type(kit.adapter())):  # type: ignore[misc]
        def apply(self, model: torch.nn.Module, facts: object, generator: object) -> torch.nn.Module:
            for name, parameter in model.named_parameters():
                parameter.requires_grad_("layers.1." in name)
            return model

    engine = kit.engine(precision="bf16", adapter=LastLayer(full=True))
    model = engine._parts.network.model
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert {master.dtype for master in engine._parts.parameters.masters} == {torch.float32}
    engine.forward_backward(kit.data(), kit.nll)
    assert not engine.step().skipped


def overflowing(kit: SimpleNamespace) -> Any:
    """An engine whose activations are beyond 65,504."""
    engine = kit.engine(precision="fp16")
    with torch.no_grad():
        for name, parameter in engine._parts.network.model.named_parameters():
            if "up_proj" in name or "down_proj" in name:
                parameter.mul_(30000.0)
    return engine


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_sampling_beyond_the_largest_number_of_fp16_says_so(kit: SimpleNamespace, temperature: float) -> None:
    engine = overflowing(kit)
    with pytest.raises(EngineError, match="prompt 0: the model's numbers for token 0 are not finite"):
        engine.generate([[5, 6, 7, 8]], Sampling(max_tokens=6, temperature=temperature, seed=1, stop_ids=()))


def test_scores_beyond_the_largest_number_of_fp16_say_so(kit: SimpleNamespace) -> None:
    """Of whatever is only measured; a training step names them as one whose loss is not finite."""
    engine, data = overflowing(kit), kit.data()
    calls = {
        "logprobs": lambda: engine.logprobs(data),
        "logprobs of the reference": lambda: engine.logprobs(data, role="reference"),
        "entropy": lambda: engine.forward(data, returns=("entropy",), train=False),
        "logits": lambda: engine.forward(data, returns=("logits",), train=False),
    }
    rows = tuple(str(datum.id) for datum in data)
    for name, call in calls.items():
        with pytest.raises(NotFinite, match=f"the model's {name.split()[0]} are not finite, with the data") as caught:
            call()
        assert caught.value.rows == rows and "fp32" in caught.value.action
    with pytest.raises(NotFinite, match="loss 'test:nll' is nan at step 1, with the data"):
        engine.forward_backward(data, kit.nll)
    begun = engine.forward(data)  # whose backward follows
    with pytest.raises(EngineError, match=r"the gradient of .* is not finite"):
        engine.backward(begun.handle, [of["logprobs"] for of in begun.outputs])


def test_a_row_of_nan_is_named_in_any_precision(kit: SimpleNamespace) -> None:
    engine, data = kit.engine(), kit.data()
    word = int(data[2].tokens[-1])
    with torch.no_grad():
        engine._parts.network.base.get_input_embeddings().weight[word] = torch.nan
    with pytest.raises(NotFinite, match="the model's logprobs are not finite") as caught:
        engine.logprobs(data)
    having = [datum for datum in data if word in datum.tokens[: np.flatnonzero(datum.mask)[-1] + 1]]  # are computed
    assert caught.value.rows == tuple(str(datum.id) for datum in having) and len(having) < len(data)
    assert np.isfinite(np.concatenate(engine.logprobs([datum for datum in data if datum not in having]))).all()
