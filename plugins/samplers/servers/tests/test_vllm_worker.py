"""The part that runs inside vLLM's workers: weights from files, as they are and where they are computed with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from finetooth_serversamplers.checksums import checksum
from finetooth_serversamplers.worker import Weights, _tensors
from safetensors.torch import load_file, save_file


class PackedLayer(torch.nn.Module):
    """Computes with a copy of its weight, as vLLM's layers do on CPUs; `quant_method` makes it."""

    def __init__(self, weight: torch.nn.Parameter) -> None:
        super().__init__()
        self.weight, self.quant_method = weight, self
        self.process_weights_after_loading(self)

    def process_weights_after_loading(self, layer: torch.nn.Module) -> None:
        packed = self.weight.detach().clone()
        self.cpu_linear = lambda x: x @ packed.T


class PackedModel(torch.nn.Module):
    """An embedding, and a head tied to it."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = PackedLayer(torch.nn.Parameter(torch.zeros(3, 2)))
        self.head = PackedLayer(self.embedding.weight)


class Runner:
    """Reloads as vLLM 0.32.0 does: the layer under whose name the file has weights is packed anew, no other."""

    def __init__(self) -> None:
        self.read: list[Any] = []
        self.model = PackedModel()

    def reload_weights(self, weights_iterator: Any = None, weights_path: str | None = None) -> None:
        self.read.append(weights_path)
        new = load_file(Path(str(weights_path)) / "model.safetensors")["embedding.weight"]
        self.model.embedding.weight.data.copy_(new)
        self.model.embedding.process_weights_after_loading(self.model.embedding)


def test_weights_are_reloaded_where_vllm_can(tmp_path: Path) -> None:
    """By its own `reload_weights`, which takes a folder; an older one has none. A head that is tied to the embedding
    computes with what was loaded, too: on CPUs vLLM left it the old weights."""
    worker = Weights()
    worker.model_runner = Runner()
    save_file({"embedding.weight": torch.arange(6.0).reshape(3, 2)}, tmp_path / "model.safetensors")
    name = f"ft-x-0-{checksum(tmp_path)[:12]}"
    assert worker.finetooth_load(str(tmp_path), name) == name and worker.model_runner.read == [str(tmp_path)]
    assert worker.model_runner.model.head.cpu_linear(torch.ones(2)).tolist() == [1.0, 5.0, 9.0]


def test_weights_in_bf16_reach_the_workers_as_they_are(tmp_path: Path) -> None:
    """Files have the type of the weights: no bit is lost, and none becomes fp16, which has no 3e38."""
    weights = {"a": torch.tensor([1.0, -3e38, 1e-40, float("inf")], dtype=torch.bfloat16), "b": torch.randn(7, 5)}
    save_file({name: weight.bfloat16() for name, weight in weights.items()}, tmp_path / "model.safetensors")
    read = dict(_tensors(tmp_path))
    for name, weight in weights.items():
        assert read[name].dtype == torch.bfloat16
        assert torch.equal(read[name].view(torch.int16), weight.bfloat16().view(torch.int16))
