"""What steps take, reckoned ahead, against what the engine executes."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from finetooth_hooks.protocols import DataPart, ModelInfo, PlacePart, PlanRequest, StepCost
from finetooth_kit.fake_context import TRAIN
from finetooth_torch.backend import TorchBackend, TorchOptions


def asked(kit: SimpleNamespace, config: Any, parameters: int, trained: int, **changes: Any) -> PlanRequest:
    request: PlanRequest = kit.plan_request(
        kit.facts(config),
        model=ModelInfo("tiny", "test:tiny", "llama", {}, parameters, 0),
        train=replace(TRAIN, micro_batch_tokens=64),
        trained=trained,
        base_frozen=trained < parameters,
        data=DataPart(30, 20.0),
    )
    return replace(request, **changes)


def cost(kit: SimpleNamespace, request: PlanRequest, **options: Any) -> StepCost | str:
    return TorchBackend(TorchOptions(decoder=kit.decoder, **options), kit.context).plan(request).cost


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("packing", [False, "auto"])
@pytest.mark.parametrize("tied", [False, True])
def test_it_is_what_the_engine_executes(kit: SimpleNamespace, full: bool, packing: Any, tied: bool) -> None:
    if packing is False and kit.decoder == "auto":
        packing = "auto"  # the stream decoder has no padding
    config = kit.config(hidden_size=64, intermediate_size=160, tie_word_embeddings=tied)
    linear = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    engine = kit.engine(config=config, adapter=kit.adapter(full=full, targets=linear), options={"packing": packing})
    parameters = sum(p.numel() for p in engine._parts.network.base.parameters())
    trained = sum(p.numel() for _, p in engine._parts.parameters.named())
    data = kit.data(12)
    executed = engine.forward_backward(data, kit.nll).flops
    positions = [len(datum) for datum in data]
    share = sum(int(datum.mask.sum()) for datum in data) / sum(positions)
    whole = parameters if full else parameters - trained
    found = cost(kit, asked(kit, config, whole, trained), packing=packing)
    assert isinstance(found, StepCost)
    assert found.flops([positions], share) == pytest.approx(executed, rel=0.1)
    assert found.flops([positions, positions], share) == pytest.approx(2 * found.flops([positions], share))


def test_logits_that_are_computed_once_are_counted_once(kit: SimpleNamespace) -> None:
    config = kit.config(hidden_size=64, intermediate_size=160, vocab_size=512)
    engine = kit.engine(config=config, adapter=kit.adapter(full=True))
    whole = sum(p.numel() for p in engine._parts.network.base.parameters())
    data = kit.data(12)
    positions, heads = [len(datum) for datum in data], sum(int(datum.mask.sum()) for datum in data)
    executed, planned = [], []
    for name in ("weights", None):
        executed.append(engine.forward_backward(data, replace(kit.nll, proportional_to=name)).flops)
        found = cost(kit, asked(kit, config, whole, whole, proportional_to=name))
        assert isinstance(found, StepCost)
        planned.append(found.flops([positions], heads / sum(positions)))
    forward = 2 * heads * 64 * 512
    assert executed[1] - executed[0] == pytest.approx(forward)
    assert planned[1] - planned[0] == pytest.approx(forward, rel=0.05)


def test_layers_that_hold_more_than_is_counted(kit: SimpleNamespace) -> None:
    config = kit.config()
    whole = 2 * (24 * (24 + 12 + 12 + 24) + 3 * 24 * 40) + 2 * 61 * 24
    assert isinstance(cost(kit, asked(kit, config, whole, 1000)), StepCost)
    experts = cost(kit, asked(kit, config, whole + 40 * 24 * 40, 1000))
    assert experts == "what its layers compute does not follow from the model's config"


def test_the_peak_is_that_of_the_planned_precision(kit: SimpleNamespace) -> None:
    hardware = replace(kit.hardware, peak_flops={"fp32": 3e12, "bf16": 9e12})
    whole = 2 * (24 * (24 + 12 + 12 + 24) + 3 * 24 * 40) + 2 * 61 * 24
    for precision, peak in hardware.peak_flops.items():
        train = replace(TRAIN, micro_batch_tokens=64, precision=precision)
        found = cost(kit, asked(kit, kit.config(), whole, 1000, place=PlacePart(hardware), train=train))
        assert isinstance(found, StepCost) and found.peak_flops() == peak
