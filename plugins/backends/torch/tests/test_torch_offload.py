"""Activations and frozen layers elsewhere: the same bits as on the device, and what cannot work is refused."""

from __future__ import annotations

import gc
import os
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from finetooth_hooks import EngineError, PlanError
from finetooth_hooks.protocols import Device, HardwareFacts, ModelInfo
from finetooth_torch.offload import saved_tensors
from finetooth_torch.offload.copies import ALIGNED, Shape, alike, overlaps
from finetooth_torch.offload.layer_window import CopiedLayers, LayerWindow, frozen
from finetooth_torch.offload.mapped_memory import Mapping, forget, in_one_file, is_clean, mappings
from finetooth_torch.offload.saved_tensors import SavedTensors
from finetooth_torch.offload.spill_file import SpillFile
from finetooth_torch.offload.transfers import Transfers, parts_of
from finetooth_torch.planning.decisions import decide
from finetooth_torch.planning.memory import estimate, layers_bytes
from finetooth_torch.planning.offload import Offload

GPU = HardwareFacts("test:gpu", (Device("cuda:0", "a GPU", 80 * 2**30),), ("bf16", "fp32"), host_memory=2**38)


@pytest.fixture(autouse=True)
def everything_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests' tensors are small."""
    monkeypatch.setattr(SavedTensors.__init__, "__kwdefaults__", {"smallest": 64})


def trained(kit: SimpleNamespace, options: dict[str, Any], steps: int = 2, **train: Any) -> dict[str, np.ndarray]:
    """Weights after some steps of two micro-batches each."""
    engine = kit.engine(config=kit.config(num_hidden_layers=5), decoder="transformers", options=options, **train)
    data = kit.data(8)
    for step in range(steps):
        engine.forward_backward(data[step:], kit.nll)
        engine.step()
    found = dict(kit.weights(engine))
    found["scores"] = np.concatenate(engine.logprobs(data))
    return found


def same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    "train",
    [{"precision": "fp32"}, {"precision": "bf16"}, {"precision": "fp32", "gradient_checkpointing": True}],
    ids=["fp32", "bf16", "recomputed"],
)
def test_activations_and_layers_on_disk_change_no_bit(
    kit: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, train: dict[str, Any]
) -> None:
    plain = trained(kit, {}, **train)
    written = []
    put = SpillFile.put
    monkeypatch.setattr(SpillFile, "put", lambda file, tensor: written.append(tensor.nbytes) or put(file, tensor))
    assert same(trained(kit, {"activations": "disk"}, **train), plain)
    assert len(written) > 12
    assert same(trained(kit, {"layers": "disk", "layer_window": 1}, **train), plain)
    assert same(trained(kit, {"layers": "disk", "layer_window": 2, "activations": "disk"}, **train), plain)


@pytest.mark.parametrize(("width", "recomputes"), [(1, False), (2, True), (3, False)])
def test_layers_that_are_copied_to_the_device_change_no_bit(
    kit: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, width: int, recomputes: bool
) -> None:
    """As on an accelerator, but for the streams: copies come and go, and while a layer is away its numbers are NaN."""
    plain = trained(kit, {}, gradient_checkpointing=recomputes)
    most = []

    def copied(model: Any, layers: Any, *, where: str, width: int, device: torch.device) -> LayerWindow:
        tensors = frozen(layers, model)
        lender = CopiedLayers(tensors, Transfers(device), torch.clone)
        return LayerWindow(layers, Absent(lender, tensors, lender._held, most), width, tensors)

    monkeypatch.setattr("finetooth_torch.offload.layer_window.window_of", copied)
    options = {"layers": "disk", "layer_window": width}
    assert same(trained(kit, options, gradient_checkpointing=recomputes), plain)
    assert max(most) == width


class Absent:
    """A lender that leaves NaN where a layer was, and counts those that are there."""

    moves = True

    def __init__(self, lender: CopiedLayers, tensors: Any, held: Any, most: list[int]) -> None:
        self._lender, self._tensors, self._most, self._here = lender, tensors, most, set[int]()
        self._nan = [[torch.full_like(tensor, float("nan")) for tensor in of] for of in held]
        for layer in range(len(tensors)):
            self._hide(layer)

    def _hide(self, layer: int) -> None:
        for tensor, nan in zip(self._tensors[layer], self._nan[layer], strict=True):
            tensor.data = nan

    def begin(self, layer: int) -> None:
        self._here.add(layer)
        self._most.append(len(self._here))
        self._lender.begin(layer)

    def wait(self, layer: int) -> None:
        self._lender.wait(layer)

    def drop(self, layer: int) -> None:
        self._here.remove(layer)
        lent = [tensor.data for tensor in self._tensors[layer]]
        self._lender.drop(layer)
        for tensor in lent:
            tensor.fill_(float("nan"))  # whoever kept it computes nonsense
        self._hide(layer)

    def place_of(self, tensor: Any) -> Any:
        return self._lender.place_of(tensor)


def test_tensors_of_one_copy_are_aligned_and_change_alone() -> None:
    like = [torch.tensor([True, False, True]), torch.rand(2, 3), torch.zeros(0, dtype=torch.long), torch.arange(4.0)]
    memory = torch.zeros(4 * ALIGNED, dtype=torch.uint8)
    parts = parts_of(memory, like, [0, ALIGNED, 2 * ALIGNED, 3 * ALIGNED])
    for part, of in zip(parts, like, strict=True):
        part.copy_(of)
    assert all(torch.equal(part, of) and part.dtype == of.dtype for part, of in zip(parts, like, strict=True))
    weights = torch.rand(2, 3, requires_grad=True)
    product = (weights * parts[1]).sum()
    parts[3] += 1  # a loss may
    product.backward()
    assert torch.equal(weights.grad, like[1])


@pytest.mark.parametrize(
    "make",
    [
        lambda x: x,
        lambda x: x.t(),
        lambda x: x[1:, 3:],
        lambda x: x[:, ::2],
        lambda x: x.view(-1)[5:],
        lambda x: x.bfloat16(),
        lambda x: x[0, 0],
    ],
)
@pytest.mark.parametrize("place", ["disk", "host"])
def test_what_comes_back_lies_as_it_did(tmp_path: Any, make: Any, place: str) -> None:
    tensor = make(torch.arange(35 * 11, dtype=torch.float32).view(35, 11))
    put = SpillFile(tmp_path).put if place == "disk" else Transfers(torch.device("cpu")).put
    back = put(tensor)()
    assert torch.equal(back, tensor) and back.dtype == tensor.dtype
    assert back.stride() == tensor.stride() and back.data_ptr() % 64 == tensor.data_ptr() % 64
    assert back.data_ptr() != tensor.data_ptr()


def test_a_tensor_whose_numbers_share_memory_is_told() -> None:
    x = torch.zeros(4, 6)
    assert overlaps(x[:, :1].expand(4, 6)) and overlaps(x.view(-1).unfold(0, 3, 1))
    assert not any(map(overlaps, (x, x.t(), x[1:, ::2], x[:1].expand(1, 6), torch.zeros(()))))
    made, _ = alike(Shape.of(x.t()), torch.device("cpu"))
    assert made.stride() == (1, 6)


@pytest.mark.slow
def test_the_file_is_empty_when_nothing_is_kept_in_it(tmp_path: Any) -> None:
    file = SpillFile(tmp_path)
    kept = [file.put(torch.full((100,), float(i))) for i in range(3)]
    assert list(tmp_path.iterdir()) == []  # it has no name: nothing stays, however the process ends
    assert os.fstat(file._file.fileno()).st_size == 1200 == file.most
    assert [float(one()[7]) for one in kept] == [0.0, 1.0, 2.0]
    del kept
    gc.collect()
    assert os.fstat(file._file.fileno()).st_size == 0
    assert float(file.put(torch.ones(5))()[0]) == 1.0


def test_a_disk_that_is_full_is_said_in_one_line(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> int:
        raise OSError(28, "No space left on device")

    file = SpillFile(tmp_path)
    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(EngineError, match=r"backend\.activations=disk: the file in .*: No space left on device"):
        file.put(torch.ones(5))


def test_mapped_tensors_come_back_after_they_were_forgotten(tmp_path: Any) -> None:
    tensors = [torch.arange(5000.0), torch.arange(7, dtype=torch.int8), torch.randn(900, 33).bfloat16()]
    mapped = in_one_file(tensors, tmp_path)
    for _ in range(2):
        for one, other in zip(mapped, tensors, strict=True):
            forget(one)
            assert torch.equal(one, other)
    known = mappings()
    assert all(is_clean(one, known) for one in mapped)
    assert not any(is_clean(one, known) for one in tensors)
    assert not is_clean(mapped[0], [Mapping(0, 10, True)])


def test_a_privately_mapped_file_that_was_written_to_is_not_clean(tmp_path: Any) -> None:
    """Forgetting it would lose what was written."""
    path = tmp_path / "numbers"
    path.write_bytes(bytes(40_000))
    tensor = torch.from_file(str(path), shared=False, size=10_000)
    assert is_clean(tensor, mappings())
    tensor[5000] = 1.0
    assert not is_clean(tensor, mappings())


def test_what_trains_or_is_shared_is_never_lent(kit: SimpleNamespace) -> None:
    engine = kit.engine(config=kit.config(), decoder="transformers")
    model, layers = engine._parts.network.model, list(engine._parts.network.base.model.layers)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = [[names[id(tensor)] for tensor in of] for of in frozen(layers, model)]
    assert all(".layers.0." in name and not name.endswith((".a", ".b")) for name in found[0])
    assert [len(of) for of in found] == [9, 9]  # seven matrices, two norms
    layers[1].input_layernorm = layers[0].input_layernorm
    assert [len(of) for of in frozen(layers, model)] == [8, 8]


@pytest.mark.parametrize(
    ("options", "more", "said"),
    [
        ({"activations": "host"}, {}, "backend.activations=host: on a CPU"),
        ({"layers": "host"}, {}, "backend.layers=host: on a CPU"),
        ({"layers": "disk"}, {"base_frozen": False}, "backend.layers=disk: the adapter trains weights of the base"),
    ],
)
def test_what_cannot_work_is_refused_by_the_plan(
    kit: SimpleNamespace, options: dict[str, str], more: dict[str, Any], said: str
) -> None:
    request = kit.plan_request(kit.facts(kit.config()), **more)
    with pytest.raises(PlanError, match=said) as refused:
        decide(request, "auto", offload=Offload(**options))
    assert refused.value.action


def test_an_adapter_that_changes_the_base_is_refused(kit: SimpleNamespace) -> None:
    request = kit.plan_request(kit.facts(kit.config()))
    changing = kit.adapter()
    changing.capabilities = frozenset({"changes"})
    request = replace(request, trains=replace(request.trains, adapter=changing))
    with pytest.raises(PlanError, match="changes the base between steps"):
        decide(request, "auto", offload=Offload(layers="disk"))


def test_the_plan_says_what_is_elsewhere_and_who_computes(kit: SimpleNamespace) -> None:
    request = kit.plan_request(kit.facts(kit.config(num_hidden_layers=8)))
    plan = decide(request, "auto", context=kit.context, offload=Offload("disk", "disk", 2))
    said = {one.setting: one for one in plan.decisions}
    assert said["backend.layers"].value == "disk" and "2 of 8 at a time" in said["backend.layers"].reason
    assert said["backend.activations"].value == "disk"
    assert said["backend.decoder"].value == "transformers"


def test_memory_moves_from_the_device_to_the_host(kit: SimpleNamespace) -> None:
    config = kit.config(num_hidden_layers=16, hidden_size=1024, intermediate_size=4096, vocab_size=1000)
    facts = kit.facts(config)
    each = 4 * 1024 * 1024 - 2 * 512 * 1024 + 3 * 1024 * 4096 + 2 * 1024
    parameters = 16 * each + 2001 * 1024
    model = ModelInfo("tiny", "test:tiny", "llama", {}, parameters, 2 * parameters)
    request = kit.plan_request(facts, model=model, hardware=GPU)

    def takes(**offload: Any) -> Any:
        return estimate(request, "bf16", 2048, checkpointing=False, stream=False, offload=Offload(**offload))

    plain, lent, spilled = takes(), takes(layers="host", window=4), takes(activations="host")
    assert plain.parts["weights"] - lent.parts["weights"] == pytest.approx(2 * each * 12)
    assert lent.host["layers"] == layers_bytes(request, "bf16") == 2 * each * 16
    assert "layers" not in takes(layers="disk").host
    assert spilled.parts["activations"] < plain.parts["activations"] / 4
    assert spilled.host["activations"] > plain.parts["activations"] / 2
    assert saved_tensors.SMALLEST == 2**20


def test_a_base_of_another_precision_is_counted_whole_while_it_is_loaded(kit: SimpleNamespace) -> None:
    facts = kit.facts(kit.config(num_hidden_layers=16, hidden_size=1024, intermediate_size=4096, vocab_size=1000))
    model = ModelInfo("tiny", "test:tiny", "llama", {}, 10**9, 2 * 10**9)
    request = kit.plan_request(facts, model=model)
    offload = Offload(layers="disk")
    as_it_is = estimate(request, "bf16", 64, checkpointing=False, stream=False, offload=offload)
    turned = estimate(request, "fp32", 64, checkpointing=False, stream=False, offload=offload)
    assert "loading" not in as_it_is.parts and as_it_is.parts["weights"] < 10**9
    # layers of the run's precision stay in the files that they came from; turned into another they are written
    assert as_it_is.disk == {} and turned.disk == {"layers": layers_bytes(request, "fp32")}
    spilled = estimate(request, "bf16", 64, checkpointing=False, stream=False, offload=Offload(activations="disk"))
    assert spilled.disk.keys() == {"activations"} and spilled.disk["activations"] > spilled.parts["activations"]
    assert turned.total > 4 * 10**9
