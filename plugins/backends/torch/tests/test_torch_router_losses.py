"""Losses of a mixture's routers, against transformers' own functions over the real positions of a whole step, in
float64: the same whatever the layout, the micro-batches and the ranks."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from finetooth_gptoss.family import GPTOSS
from finetooth_hooks import EngineError, PlanError
from finetooth_hooks.protocols import DataPart, Family, ModelInfo, StepCost
from finetooth_kit.fake_context import TRAIN
from finetooth_kit.families import SIZES
from finetooth_mistral.family import Mistral
from finetooth_qwen.family import Qwen
from finetooth_steps.normalizers import count_normalizers
from finetooth_torch.backend import TorchBackend, TorchOptions
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func
from transformers.models.switch_transformers.modeling_switch_transformers import router_z_loss_func

sys.path.insert(0, str(Path(__file__).parent))
from ranks_in_threads import lines, together  # type: ignore[import-not-found]

COEFFICIENTS = {"router_aux_loss_coef": 0.3, "router_z_loss_coef": 0.05}
MIXTURE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "head_dim": 8}
FAMILIES: dict[str, tuple[Family, dict[str, Any]]] = {
    "mixtral": (Mistral(), {"num_local_experts": 5}),
    "qwen3_moe": (Qwen(), {**MIXTURE, "mlp_only_layers": [0]}),
    "gpt_oss": (GPTOSS(), {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 8}),
}


def configured(kit: SimpleNamespace, kind: str) -> Any:
    sizes = kit.config().to_dict()
    own = {**{name: sizes[name] for name in (*SIZES, "eos_token_id")}, **FAMILIES[kind][1]}
    return transformers.AutoConfig.for_model(kind, **own, experts_implementation="eager")


def built(kit: SimpleNamespace, kind: str = "mixtral", options: Any = COEFFICIENTS, **settings: Any) -> Any:
    config = configured(kit, kind)
    facts = FAMILIES[kind][0].facts(config.to_dict())
    known = {name: getattr(facts, name) for name in ("per_layer", "block", "attention", "linear_targets")}
    settings = {"precision": "fp64", "adapter": kit.adapter(full=True), "can_disable": False, **settings}
    return kit.engine(config=config, facts=known, options=options, **settings)


def truth(model: Any, data: Any, config: Any) -> dict[str, Any]:
    """Both losses and the loss of the targets, from each datum alone up to its last target that counts (what follows is
    never computed), and gradients of their weighted sum."""
    logits: list[list[torch.Tensor]] = []
    nll = torch.zeros((), dtype=torch.float64)
    for datum in data:
        stop = int(np.flatnonzero(datum.mask)[-1]) + 1
        tokens = torch.tensor([list(map(int, datum.tokens[:stop]))])
        found = model(input_ids=tokens, use_cache=False, output_router_logits=True)
        logits.append([one.reshape(-1, one.shape[-1]) for one in found.router_logits])
        targets = torch.tensor(datum.targets[:stop].tolist())
        taken = found.logits[0].log_softmax(-1).gather(-1, targets[:, None])[:, 0]
        weights = torch.tensor((datum.fields["weights"] * datum.mask)[:stop].tolist(), dtype=torch.float64)
        nll = nll - (taken * weights).sum()
    layers = tuple(torch.cat(of) for of in zip(*logits, strict=True))
    balance = load_balancing_loss_func(layers, layers[0].shape[-1], config.num_experts_per_tok)
    z = router_z_loss_func(torch.cat(layers)[None])
    loss = nll / count_normalizers(data)["weights"] + 0.3 * balance + 0.05 * z
    loss.backward()
    named = {name: p.grad.numpy() for name, p in model.named_parameters() if p.grad is not None}
    return {"router_aux_loss": balance.item(), "router_z_loss": z.item(), "loss": loss.item(), "gradients": named}


@pytest.mark.parametrize("kind", FAMILIES)
def test_they_are_those_of_transformers(kit: SimpleNamespace, kind: str) -> None:
    config, data = configured(kit, kind), kit.data()
    model = kit.loader(config).load("tiny", framework="torch", precision="fp64", device="cpu")
    expected = truth(model, data, config)
    engine = built(kit, kind, micro_batch_tokens=4096)
    found = engine.forward_backward(data, kit.nll)
    assert found.micro_batches == 1 and found.loss == pytest.approx(expected["loss"], rel=1e-6)
    for name in ("router_aux_loss", "router_z_loss"):
        assert found.components[name] == pytest.approx(expected[name], rel=1e-6)
    assert kit.relative(kit.gradients(engine), expected["gradients"]) < 1e-6


LAYOUTS: dict[str, dict[str, Any]] = {
    "small micro-batches": {"micro_batch_tokens": 40},
    "padded": {"micro_batch_tokens": 90, "options": {**COEFFICIENTS, "packing": False}},
    "layers computed again": {"micro_batch_tokens": 64, "gradient_checkpointing": True},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_neither_the_cut_nor_packing_nor_checkpointing_changes_them(kit: SimpleNamespace, layout: str) -> None:
    data = kit.data(9, seed=3)
    whole, other = built(kit, micro_batch_tokens=4096), built(kit, **LAYOUTS[layout])
    first, second = (engine.forward_backward(data, kit.nll) for engine in (whole, other))
    assert first.micro_batches == 1 < second.micro_batches
    for name, value in first.components.items():
        assert second.components[name] == pytest.approx(value, rel=1e-9)
    assert kit.relative(kit.gradients(other), kit.gradients(whole)) < 1e-9


def test_a_loss_over_the_whole_step_and_given_gradients_have_them_too(kit: SimpleNamespace) -> None:
    data, engines = kit.data(6, seed=4), [built(kit, micro_batch_tokens=40) for _ in range(3)]
    engines[0].forward_backward(data, kit.nll)
    found = engines[1].forward_backward(data, replace(kit.nll, together="step"))
    assert found.components["router_aux_loss"] > 0
    handle, total = engines[2].forward(data).handle, count_normalizers(data)["weights"]
    engines[2].backward(handle, [-(datum.fields["weights"] * datum.mask / total).astype(np.float64) for datum in data])
    first, *others = map(kit.gradients, engines)
    assert all(kit.relative(other, first) < 1e-6 for other in others)


@pytest.mark.parametrize("first", [3, 7], ids=["uneven", "one rank has none"])
def test_ranks_come_to_what_one_comes_to(kit: SimpleNamespace, first: int) -> None:
    data = kit.data(7, seed=5)
    alone = built(kit, micro_batch_tokens=64)
    expected = alone.forward_backward(data, kit.nll)
    engines = [built(kit, micro_batch_tokens=64, collective=line) for line in lines()]
    counts, shares = count_normalizers(data), (data[:first], data[first:])
    done = together([
        lambda engine=engine, mine=mine: engine.forward_backward(mine, kit.nll, normalizer=counts)
        for engine, mine in zip(engines, shares, strict=True)
    ])  # fmt: skip
    for name in ("router_aux_loss", "router_z_loss"):
        parts = [one.components.get(name, 0.0) for one in done]
        assert sum(parts) == pytest.approx(expected.components[name], rel=1e-9)
    of_ranks = [kit.gradients(engine) for engine in engines]
    summed = {name: sum(of.get(name, 0.0) for of in of_ranks) for name in of_ranks[0]}
    assert kit.relative(summed, kit.gradients(alone)) < 1e-9


def test_a_step_in_several_calls_is_refused(kit: SimpleNamespace) -> None:
    engine, data = built(kit), kit.data(4)
    engine.forward_backward(data, kit.nll)
    with pytest.raises(EngineError, match="router_aux_loss_coef and router_z_loss_coef are of whole steps"):
        engine.forward_backward(data, kit.nll)
    engine.step()
    engine.forward_backward(data, kit.nll)


def test_off_is_as_before_and_scores_have_none(kit: SimpleNamespace) -> None:
    engine, off, data = built(kit), built(kit, options={}), kit.data(4)
    assert set(off.forward_backward(data, kit.nll).components) == {"nll"}
    assert engine.forward(data, kit.nll, train=False).loss == off.forward(data, kit.nll, train=False).loss


def test_a_model_without_such_routers_is_refused(kit: SimpleNamespace) -> None:
    for name in COEFFICIENTS:
        backend = TorchBackend(TorchOptions(**{name: 0.001}), kit.context)
        with pytest.raises(PlanError, match=f"backend.{name}: models of the type llama have no routers"):
            backend.plan(kit.plan_request(kit.facts(kit.config())))


def test_the_plan_counts_the_pass_that_counts(kit: SimpleNamespace) -> None:
    """Operations are those that the engine executes; memory grows by the scores of all layers."""
    config, data = configured(kit, "mixtral"), kit.data(12)
    facts = FAMILIES["mixtral"][0].facts(config.to_dict())
    engine = built(kit, micro_batch_tokens=64)
    parameters = sum(p.numel() for p in engine._parts.network.base.parameters())
    positions, targets = [len(datum) for datum in data], sum(int(datum.mask.sum()) for datum in data)
    plans = [
        TorchBackend(TorchOptions(**options), kit.context).plan(
            kit.plan_request(
                facts, model=ModelInfo("tiny", "test:tiny", "mixtral", config.to_dict(), parameters, 0),
                train=replace(TRAIN, micro_batch_tokens=64), trained=parameters, base_frozen=False,
                data=DataPart(30, 20.0),
            )
        )
        for options in ({}, COEFFICIENTS)
    ]  # fmt: skip
    costs = [plan.cost for plan in plans]
    assert all(isinstance(cost, StepCost) for cost in costs)
    off, on = (cost.flops([positions], targets / sum(positions)) for cost in costs)
    assert on == pytest.approx(engine.forward_backward(data, kit.nll).flops, rel=0.1) and on > 1.2 * off
    assert plans[1].memory.parts["activations"] > plans[0].memory.parts["activations"]
