"""What a plan says of ranks that divide a model, and which optimizers it lets them divide."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from finetooth_hooks import Device, HardwareFacts, OptimizerBase, PlanError
from finetooth_hooks.protocols import PlanRequest, Sharding, Stored
from finetooth_kit.fake_context import FakeContext
from finetooth_torch.backend import TorchBackend, TorchOptions


class Made(OptimizerBase):
    """An optimizer of a class of torch's own."""

    def __init__(self, made_by: Any, *words: str) -> None:
        self._made_by, self._words = made_by, frozenset(words)

    @property
    def capabilities(self) -> frozenset[str]:
        return self._words

    @property
    def learning_rate(self) -> float:
        return 0.1

    def create(self, named_parameters: Sequence[tuple[str, Any]]) -> Any:
        return self._made_by([parameter for _, parameter in named_parameters], lr=0.1)


GPU = HardwareFacts("test:gpu", (Device("cuda:0", "a GPU", 80 * 2**30),), ("bf16", "fp32"), host_memory=2**38)


def planned(
    kit: SimpleNamespace, sharding: Sharding | None, optimizer: Any = None, hardware: HardwareFacts | None = None,
    several_calls: bool = False, **train: Any,
) -> Any:  # fmt: skip
    request: PlanRequest = kit.plan_request(kit.facts(kit.config()), several_calls=several_calls)
    updates = request.updates if optimizer is None else replace(request.updates, optimizer=optimizer, name="made")
    place = replace(request.place, sharding=sharding, hardware=hardware or request.place.hardware)
    backend = TorchBackend(TorchOptions(), FakeContext(Path(), installed=True))
    return backend.plan(replace(request, place=place, updates=updates, train=replace(request.train, **train)))


@pytest.mark.parametrize("made_by", [torch.optim.AdamW, torch.optim.SGD, torch.optim.RMSprop, torch.optim.NAdam])
def test_an_optimizer_of_single_weights_may_be_spread(kit: SimpleNamespace, made_by: Any) -> None:
    plan = planned(kit, Sharding(weights=1, gradients=1, optimizer=2), Made(made_by))
    assert {of.setting: of.value for of in plan.decisions}["scale.optimizer"] == "1/2"


def test_a_method_that_drives_the_model_itself_knows_of_no_ranks(kit: SimpleNamespace) -> None:
    request: PlanRequest = kit.plan_request(kit.facts(kit.config()), needs=frozenset({"module"}))
    backend = TorchBackend(TorchOptions(), FakeContext(Path(), installed=True))
    backend.plan(request)
    place = replace(request.place, collective=SimpleNamespace(rank=0, world=2))
    with pytest.raises(PlanError, match="would do so at each rank by itself"):
        backend.plan(replace(request, place=place))


def test_an_optimizer_of_whole_matrices_is_refused(kit: SimpleNamespace) -> None:
    """Adafactor (Shazeer and Stern, 2018) keeps a mean for each row and column of a matrix."""
    spread = Sharding(weights=1, gradients=1, optimizer=2)
    with pytest.raises(PlanError, match="and made cannot: a weight's update depends on the other weights"):
        planned(kit, spread, Made(torch.optim.Adafactor))
    with pytest.raises(PlanError, match="it has the capability averages"):
        planned(kit, spread, Made(torch.optim.SGD, "averages"))


def test_a_rank_keeps_its_part_of_the_optimizer(kit: SimpleNamespace) -> None:
    """AdamW's 8 bytes for each number that trains, and 4 of a copy of the weights, among four ranks; all else whole."""
    whole, spread = (planned(kit, of).memory.parts for of in (None, Sharding(weights=1, gradients=1, optimizer=4)))
    trained = whole["optimizer"] // 8
    assert trained and spread["optimizer"] == -(-12 * trained // 4)
    measured = {"optimizer": 0, "overhead": 0}  # overhead is of this process
    assert {**spread, **measured} == {**whole, **measured}


@pytest.mark.parametrize(
    ("sharding", "said"),
    [
        (None, {}),
        (Sharding(weights=1, gradients=1, optimizer=1), {}),
        (Sharding(weights=1, gradients=1, optimizer=2), {"optimizer": "1/2"}),
        (
            Sharding(weights=4, gradients=8, optimizer=8, layers=2, shard=lambda *_: None),  # type: ignore[arg-type,return-value]
            {"weights": "1/8", "gradients": "1/8", "optimizer": "1/8"},
        ),
        (Sharding(weights=1, gradients=1, optimizer=1, stage_count=2, stages=lambda: None), {"layers": "1/2"}),  # type: ignore[arg-type,return-value]
        (
            Sharding(2, 4, 4, lambda *_: None, layers=2, stages=lambda: None, stage_count=2),  # type: ignore[arg-type,return-value]
            {"layers": "1/2", "weights": "1/4", "gradients": "1/4", "optimizer": "1/4"},
        ),
        (Sharding(weights=1, gradients=1, optimizer=1, positions=2), {"positions": "1/2"}),
    ],
)
def test_the_plan_says_what_each_rank_holds(
    kit: SimpleNamespace, sharding: Sharding | None, said: dict[str, str]
) -> None:
    decisions = {of.setting: of.value for of in planned(kit, sharding).decisions if of.setting.startswith("scale.")}
    assert decisions == {f"scale.{name}": share for name, share in said.items()}


@pytest.mark.parametrize("heads", [1, 2], ids=["all heads", "some heads"])
@pytest.mark.parametrize(("precision", "size"), [("bf16", 2), ("fp32", 4)])
def test_a_rank_holds_its_part_of_its_layers(kit: SimpleNamespace, precision: str, size: int, heads: int) -> None:
    """Half of the layers and what lies in none, of which two ranks each hold a half; of an adapter, which trains in
    fp32, a quarter. Where two more divide each layer, half as much of layers: then the plan says a little too much,
    since it takes an adapter's share to be the whole stage's. A rank gathers less than ranks that divide all layers,
    and an optimizer gets parts of matrices."""
    request: PlanRequest = kit.plan_request(kit.facts(kit.config()))
    facts, trained = request.base.facts, request.trains.parameters
    shard: Any = lambda *_: None  # noqa: E731
    stages: Any = lambda: None  # noqa: E731
    both = Sharding(2, 2 * heads, 2 * heads, shard, layers=heads, stages=stages, stage_count=2)
    parts = planned(kit, both, hardware=GPU, precision=precision).memory.parts
    in_layers = request.base.model.parameters - 2 * facts.vocab_size * facts.hidden_size
    outside = request.base.model.parameters - in_layers
    held = size * outside + (size * in_layers + 4 * trained) / 2 / heads
    assert parts["weights"] == pytest.approx(held / 2, rel=0.03 if heads == 1 else 0.1)
    assert parts["optimizer"] == pytest.approx(8 * trained / 4 / heads, rel=0.01)
    alone = planned(kit, Sharding(weights=2, gradients=2, optimizer=2, shard=shard), hardware=GPU, precision=precision)
    assert parts["gathered"] <= alone.memory.parts["gathered"] and parts["gradients"] < alone.memory.parts["gradients"]
    with pytest.raises(PlanError, match="made cannot update"):
        planned(kit, both, Made(torch.optim.Muon))
    planned(kit, replace(both, shard=None), Made(torch.optim.Muon))


@pytest.mark.parametrize(("precision", "size"), [("bf16", 2), ("fp32", 4)])
def test_weights_that_wait_on_the_host_are_counted_there(kit: SimpleNamespace, precision: str, size: int) -> None:
    """Over four ranks: a quarter of all weights on the device or on the host, and on the device a quarter of what
    trains in fp32. A CPU has one memory for both."""
    request: PlanRequest = kit.plan_request(kit.facts(kit.config()))
    trained = request.trains.parameters
    waiting, masters = size * (request.base.model.parameters + trained) // 4, 4 * trained // 4
    shard: Any = lambda *_: None  # noqa: E731
    here = Sharding(weights=4, gradients=4, optimizer=4, shard=shard, divided=True)
    away = replace(here, on_host=True)
    on_device, on_host = (planned(kit, of, hardware=GPU, precision=precision).memory for of in (here, away))
    assert (on_device.parts["weights"], on_host.parts["weights"]) == (masters + waiting, masters)
    measured = {"overhead": 0}  # of this process
    assert {**on_host.host, **measured} == {**on_device.host, "weights": waiting, **measured}
    assert {**on_host.parts, "weights": 0} == {**on_device.parts, "weights": 0}
    parts = [planned(kit, of).memory.parts["weights"] for of in (here, away)]
    assert parts[0] == parts[1]


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_parts_that_wait_on_the_host_are_all_counted_there(kit: SimpleNamespace, precision: str) -> None:
    """Over four ranks, of a model whose parts are what trains: none of weights, optimizer state and summed gradients
    is left on the device, which needs room for the part that is gathered next."""
    shard: Any = lambda *_: None  # noqa: E731
    here = Sharding(weights=4, gradients=4, optimizer=4, shard=shard)
    on_device, on_host = (
        planned(kit, of, hardware=GPU, precision=precision).memory for of in (here, replace(here, on_host=True))
    )
    request: PlanRequest = kit.plan_request(kit.facts(kit.config()))
    trained = request.trains.parameters
    weights = ({"bf16": 2, "fp32": 4}[precision] * request.base.model.parameters + 4 * trained) // 4
    assert on_device.parts["weights"] == pytest.approx(weights, rel=0.01)
    moved = {name: on_device.parts[name] - on_host.parts[name] for name in ("weights", "gradients", "optimizer")}
    assert moved == {
        "weights": on_device.parts["weights"], "gradients": 4 * trained // 4, "optimizer": 8 * trained // 4,
    }  # fmt: skip
    assert {name: on_host.host[name] for name in moved} == moved
    said = replace(here, on_host=True).held()
    assert {what for _, what in said.values()} == {
        f"1/4 of the {of}, in host memory" for of in ("weights", "gradients", "optimizer's state")
    }
    brought = on_host.parts["gathered"] - on_device.parts["gathered"]
    assert 0 < brought < on_device.parts["weights"]
    on_cpu = [planned(kit, of).memory for of in (here, replace(here, on_host=True))]
    measured = {"overhead": 0}
    assert {**on_cpu[0].parts, **measured} == {**on_cpu[1].parts, **measured} and on_cpu[1].host == {}


def test_a_rank_keeps_its_part_of_earlier_gradients(kit: SimpleNamespace) -> None:
    shard: Any = lambda *_: None  # noqa: E731
    stages: Any = lambda: None  # noqa: E731
    parted, pipe = Sharding(4, 4, 4, shard), Sharding(1, 1, 1, stage_count=2, stages=stages)
    trained = kit.plan_request(kit.facts(kit.config())).trains.parameters

    def taken(sharding: Sharding, memory: int = 80 * 2**30) -> tuple[int | None, int | None]:
        hardware = replace(GPU, devices=(replace(GPU.devices[0], memory=memory),))
        made = planned(kit, sharding, hardware=hardware, several_calls=True).memory
        return made.parts.get("earlier_gradients"), made.host.get("earlier_gradients")

    assert taken(parted) == taken(parted, memory=2**14) == (trained, None)  # their tensors, and no copies
    assert taken(replace(parted, on_host=True)) == (None, trained)
    assert taken(pipe) == (2 * trained, None) and taken(pipe, memory=2**14) == (None, 2 * trained)


class InHalfBytes:
    """Stores every linear weight in 4 bits."""

    stored, skip, capabilities = Stored("halves of bytes", 0.5), (), frozenset[str]()

    def takes(self, path: str, shape: tuple[int, int]) -> bool:
        return True


def test_a_base_in_fewer_bits_is_divided_where_the_strategy_can(kit: SimpleNamespace) -> None:
    """Among four ranks, as it is stored; ranks that read weights as numbers refuse it."""
    plain: PlanRequest = kit.plan_request(kit.facts(kit.config()))
    quantizer: Any = InHalfBytes()
    request = replace(plain, base=replace(plain.base, quantizer=quantizer))
    backend = TorchBackend(TorchOptions(), FakeContext(Path(), installed=True))
    shard: Any = lambda *_: None  # noqa: E731

    def weights(sharding: Sharding, of: PlanRequest = request) -> int:
        place = replace(of.place, sharding=sharding, hardware=GPU)
        made = backend.plan(replace(of, place=place, train=replace(of.train, precision="bf16")))
        return int(made.memory.parts["weights"])

    here = Sharding(weights=4, gradients=4, optimizer=4, shard=shard, stored=True)
    facts = plain.base.facts
    of_layer = 2 * (facts.heads + facts.kv_heads) * facts.head_dim + 3 * facts.ffn_size
    saved = weights(here, plain) - weights(here)
    assert saved == pytest.approx(1.5 * facts.layers * of_layer * facts.hidden_size / 4, rel=0.01)
    with pytest.raises(PlanError, match=r"stored in fewer bits \(halves of bytes\).*") as refused:
        weights(replace(here, stored=False))
    assert "scale.strategy: fsdp" in str(refused.value)


def test_a_rank_is_planned_to_read_its_part_of_a_base_in_fewer_bits(kit: SimpleNamespace) -> None:
    """Where its strategy keeps no more: three of four parts less of what is stored, half a byte a weight."""
    plain: PlanRequest = kit.plan_request(kit.facts(kit.config()))
    quantizer: Any = InHalfBytes()
    base = replace(plain.base, quantizer=quantizer, model=replace(plain.base.model, by_module=True))
    backend = TorchBackend(TorchOptions(), FakeContext(Path(), installed=True))
    shard: Any = lambda *_: None  # noqa: E731

    def loading(keeps: Any) -> int:
        sharding = Sharding(weights=4, gradients=4, optimizer=4, shard=shard, stored=True, keeps=keeps)
        place = replace(plain.place, sharding=sharding, hardware=GPU)
        train = replace(plain.train, precision="bf16")
        return int(backend.plan(replace(plain, base=base, place=place, train=train)).memory.host["loading"])

    facts = plain.base.facts
    of_layer = 2 * (facts.heads + facts.kv_heads) * facts.head_dim + 3 * facts.ffn_size
    saved = loading(None) - loading(lambda *_: None)
    assert saved == pytest.approx(0.5 * facts.layers * of_layer * facts.hidden_size * 3 / 4, rel=0.01)


def test_layers_elsewhere_are_refused_where_ranks_have_some_of_them(kit: SimpleNamespace) -> None:
    """In one line, with what to do."""
    request: PlanRequest = kit.plan_request(kit.facts(kit.config()))
    stages: Any = lambda: None  # noqa: E731
    sharding = Sharding(weights=1, gradients=1, optimizer=1, layers=2, stages=stages)
    request = replace(request, place=replace(request.place, sharding=sharding, hardware=GPU))
    backend = TorchBackend(TorchOptions(layers="host"), FakeContext(Path(), installed=True))
    with pytest.raises(PlanError) as caught:
        backend.plan(replace(request, train=replace(request.train, precision="bf16")))
    assert caught.value.problem == "scale.strategy: it divides the model among ranks: backend.layers=host"
    assert caught.value.action.startswith("leave backend.layers out, or ")


def test_a_plan_before_ranks_have_met_refuses_what_theirs_will(kit: SimpleNamespace) -> None:
    """`ft check` of a run over several ranks has no line to them."""
    request: PlanRequest = kit.plan_request(kit.facts(kit.config()))
    updates = replace(request.updates, optimizer=Made(torch.optim.SGD, "in_backward"), name="made")
    train = replace(request.train, max_grad_norm=0.0)
    among = replace(request.place, wrap=lambda model: model)
    backend = TorchBackend(TorchOptions(), FakeContext(Path(), installed=True))
    backend.plan(replace(request, updates=updates, train=train))
    with pytest.raises(PlanError, match="before gradients of several ranks are added up"):
        backend.plan(replace(request, updates=updates, train=train, place=among))


def test_dropped_attention_is_refused_where_ranks_have_some_heads(kit: SimpleNamespace) -> None:
    """What drops is keyed by a head's number, and each rank counts its own from 0."""
    request: PlanRequest = kit.plan_request(kit.facts(kit.config()))
    model = replace(request.base.model, config={**request.base.model.config, "attention_dropout": 0.1})
    request = replace(request, base=replace(request.base, model=model))
    backend = TorchBackend(TorchOptions(), FakeContext(Path(), installed=True))

    def plan(layers: int) -> None:
        shard: Any = object()
        sharding = Sharding(weights=2, gradients=2, optimizer=2, layers=layers, shard=shard)
        backend.plan(replace(request, place=replace(request.place, sharding=sharding)))

    plan(1)
    with pytest.raises(PlanError, match="some attention heads each, and the model drops weights of attention"):
        plan(2)
