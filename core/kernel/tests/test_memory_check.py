"""What would fit, by an estimator whose figures can be reckoned by hand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from finetooth_core.planning.memory_check import check_memory
from finetooth_hooks import (
    Adapter,
    Backend,
    MemoryEstimate,
    Optimizer,
    PlanError,
    PluginError,
    Quantizer,
    Saving,
    Strategy,
)
from finetooth_hooks.compute.strategies import Sharding
from finetooth_hooks.protocols import (
    BasePart,
    DataPart,
    Device,
    HardwareFacts,
    ModelInfo,
    PlacePart,
    PlanRequest,
    Stored,
    TrainsPart,
    UpdatesPart,
)
from finetooth_kit.fake_context import FACTS, TRAIN

GB = 10**9
NOTHING: Any = None


class Estimator:
    """Weights take 2 GB, or what their quantizer says; what trains 4 and the optimizer's bytes a parameter; a token
    a 1,024th of a GB, a tenth of it with checkpointing. On the host a GB. Ranks divide all but activations. What is
    kept on the host takes a quarter on the device, what is packed a half, and nothing where 20 GB more of the host do
    it."""

    def __init__(self, activations: str = "device") -> None:
        self.activations = activations

    def plan(self, asked: PlanRequest) -> Any:
        train, stored = asked.train, asked.base.stored
        shares = 1 if asked.place.sharding is None else asked.place.sharding.weights
        tokens = min(train.micro_batch_tokens or 4096, train.batch_size * asked.data.longest)
        parts = {
            "weights": int(2 * GB / shares * (1.0 if stored is None else stored.bytes_per_weight / 2)),
            "trains": int((4 + asked.updates.state_bytes) * asked.trains.parameters / shares),
            "activations": tokens * GB // 1024 // (10 if train.gradient_checkpointing else 1),
        }
        parts["activations"] = int(parts["activations"] * {"host": 0.25, "packed": 0.5}.get(self.activations, 1.0))
        if self.activations == "greedy":
            return SimpleNamespace(memory=MemoryEstimate({**parts, "activations": 0}, host={"overhead": 21 * GB}))
        return SimpleNamespace(memory=MemoryEstimate(parts, host={"overhead": GB}))


class LowRank:
    def trained_parameters(self, facts: Any, parameters: int) -> int:
        return 2**20


ENTRIES = (
    Adapter(name="low", build="x:x", base_frozen=True, accepts_quantised=True),
    Adapter(name="top", build="x:x"),  # trains the base: no help
    Optimizer(name="lean", build="x:x", state_bytes=1.0),
    Optimizer(name="wide", build="x:x", state_bytes=12.0),
    Quantizer(name="four", build="x:x"),
)
DIVIDES = Strategy(name="shares", build="x:x", capabilities=frozenset({"shards"}))
COPIES = Strategy(name="copies", build="x:x")


def job(
    memory: float, available: float | None = None, host: float = 8, entries: Any = ENTRIES, devices: int = 1,
    savings: Any = (), **settings: Any,
) -> Any:  # fmt: skip
    """Half a billion parameters of which all train (6 GB), rows of 512 tokens."""
    train = replace(TRAIN, **{"batch_size": 8, "micro_batch_tokens": 4096, "gradient_checkpointing": False, **settings})
    free = None if available is None else int(available * GB)
    device = Device("gpu:0", "a GPU", int(memory * GB), available=free)
    hardware = HardwareFacts("t:gpu", (device,) * devices, ("bf16",), host_memory=int(host * GB))
    trains = TrainsPart(NOTHING, GB // 2)
    asked = PlanRequest(
        train, BasePart(ModelInfo("m", "t:m", "llama", {}, GB // 2, GB), FACTS, NOTHING), trains,
        UpdatesPart(NOTHING, NOTHING, "t:wide", 8.0), PlacePart(hardware), DataPart(512, 300.0, "train:1"),
    )  # fmt: skip
    registered = [SimpleNamespace(entry=entry, full_name=f"t:{entry.name}") for entry in entries]

    def of_kind(kind: str, framework: str = "") -> list[Any]:
        return [one for one in registered if one.entry.kind == kind]

    def build(kind: str, pick: str, *, setting: str) -> Any:
        if kind == "backend":
            assert pick["name"] == "t:made"
            return Estimator(pick["activations"])
        if pick == "t:torn":
            raise PluginError("acme", "quantizer 'torn' cannot be imported") from OSError("no such library")
        if kind == "strategy":
            return SimpleNamespace(sharding=lambda world: Sharding(world, world, world))
        return LowRank() if kind == "adapter" else SimpleNamespace(stored=Stored("four bits", 0.5))

    backend = Estimator()
    backends = [
        SimpleNamespace(
            entry=Backend(name="made", build="x:x", framework="torch", capabilities=frozenset(), savings=savings),
            full_name="t:made",
        )
    ]
    catalog = SimpleNamespace(all=of_kind, speaking=of_kind, default=lambda kind, framework: backends[0])
    recipe = SimpleNamespace(backend="auto")
    notes = ["said before"]
    context = SimpleNamespace(
        catalog=catalog, framework="torch", build=build, recipe=recipe, notes=notes, note=notes.append
    )
    plan = SimpleNamespace(train=train, memory=backend.plan(asked).memory)
    return SimpleNamespace(
        backend=backend, asked=asked, request=asked, plan=plan, context=context, passed=(), every_report=()
    )


def refusal(**of: Any) -> str:
    with pytest.raises(PlanError) as caught:
        check_memory(job(**of))
    assert caught.value.exit_code == 2
    return str(caught.value)


def test_what_fits_is_not_touched() -> None:
    check_memory(job(memory=12))  # 2 + 6 + 4 GB


def test_each_change_that_suffices_is_named_with_what_it_takes() -> None:
    said = refusal(memory=9)
    assert "would take 12.00 GB at the peak (trains 6.00 GB, activations 4.00 GB, weights 2.00 GB)" in said
    assert "a GPU has 9.00 GB" in said
    assert (
        "what would fit: train.micro_batch_tokens=1024 (9.00 GB); train.gradient_checkpointing=true (8.40 GB); "
        "adapter=low (6.01 GB); optimizer=lean (8.50 GB); train.max_length=128 (9.00 GB); or run it all the same"
    ) in said


def test_more_devices_of_the_machine_are_named() -> None:
    entries = (COPIES, DIVIDES)
    said = refusal(memory=9, entries=entries, devices=4)
    assert "scale.strategy=shares scale.devices=4 (6.00 GB)" in said and "copies" not in said  # 4 GB, 8 GB of 4 ranks
    assert "scale.devices" not in refusal(memory=9, entries=entries)


def test_changes_that_suffice_only_together_are_named_together() -> None:
    said = refusal(memory=2.2)
    assert (
        "what would fit: train.micro_batch_tokens=512 with train.gradient_checkpointing=true with adapter=low (2.06 GB)"
    ) in said
    said = refusal(memory=0.7)
    assert "adapter=low with quantization=four (563 MB)" in said


def test_what_the_backend_can_keep_elsewhere_is_named() -> None:
    """Alone, and together with what comes before it."""
    kept = (Saving(label="there", options={"activations": "host"}, costs="time"),)
    assert "; backend.activations=host (9.00 GB); " in refusal(memory=9.5, savings=kept)  # 8 GB and a quarter of 4
    said = refusal(memory=0.54, savings=kept)
    assert (  # 0.5 GB in four bits, 13 MB of the adapter, and a quarter of 50 MB
        "train.micro_batch_tokens=512 with train.gradient_checkpointing=true with adapter=low with quantization=four "
        "with backend.activations=host (525 MB)"
    ) in said


def test_what_would_fill_the_host_comes_last() -> None:
    """By itself neither is enough: the host lacks 13 GB of the one, the device 1.7 GB of the other."""
    kept = tuple(Saving(label=name, options={"activations": name}, costs="time") for name in ("greedy", "packed"))
    tight = job(memory=8.3, entries=(), savings=kept, micro_batch_tokens=None)
    tight.request = replace(tight.request, updates=replace(tight.request.updates, checkpointing=False))
    with pytest.raises(
        PlanError, match=r"would fit: backend\.activations=packed with train\.max_length=64 \(8\.25 GB\)"
    ):
        check_memory(tight)


def test_where_nothing_helps_it_says_so() -> None:
    said = refusal(memory=0.1)
    assert "no installed plugin makes it fit (with " in said and "a smaller model, or a device with more" in said
    said = refusal(memory=2, entries=())
    assert "adapter" not in said.split("(with ")[1] and "no installed plugin makes it fit" in said


def test_a_broken_library_is_named_and_passed_over() -> None:
    said = refusal(memory=9, entries=(*ENTRIES, Quantizer(name="torn", build="x:x")))
    assert "(9.00 GB); passed over: acme: quantizer 'torn' cannot be imported; or run it all the same" in said
    assert "said before" not in said and "adapter=low (6.01 GB)" in said


def test_what_is_free_counts_only_against_the_start() -> None:
    said = refusal(memory=16, available=9)
    assert "a GPU has 9.00 GB of 16.00 GB free now (end other programs that take memory; what would fit: " in said


def test_the_hosts_memory_counts_too() -> None:
    said = refusal(memory=16, host=0.5)
    assert "would take 1.00 GB at the peak (overhead 1.00 GB), and the host has 500 MB" in said


def test_an_unknown_memory_refuses_nothing() -> None:
    check_memory(job(memory=0, host=0))


def test_a_base_that_is_stored_in_fewer_bits_is_not_stored_again() -> None:
    tight = job(memory=0.1)
    model: Mapping[str, Any] = {"stored": Stored("four bits", 0.5)}
    base = replace(tight.request.base, model=replace(tight.request.base.model, **model))
    tight.request = tight.asked = replace(tight.asked, base=base)
    with pytest.raises(PlanError) as caught:
        check_memory(tight)
    assert "quantization" not in str(caught.value)


def test_what_is_kept_on_a_disk_must_have_room_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside memory, which it does not take."""
    from finetooth_core.planning import memory_check

    monkeypatch.setattr(memory_check.shutil, "disk_usage", lambda folder: SimpleNamespace(free=5 * GB))
    device = Device("gpu:0", "a GPU", 8 * GB)
    hardware = HardwareFacts("t:gpu", (device,), ("bf16",))
    fits = MemoryEstimate({"weights": 4 * GB}, disk={"activations": 4 * GB})
    assert memory_check.shortages(fits, hardware) == []
    lacks = MemoryEstimate({"weights": 4 * GB}, disk={"activations": 4 * GB, "layers": 2 * GB})
    (said,) = memory_check.shortages(lacks, hardware)
    assert said.startswith("would take 6.00 GB at the peak (activations 4.00 GB, layers 2.00 GB), and the disk of ")
    assert said.endswith("has 5.00 GB free now")
