"""What does not fit on made-up hardware, with the figures of the torch backend: models of real size whose weights are
nowhere."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from finetooth_core.planning.memory_check import check_memory
from finetooth_core.planning.plan import Job
from finetooth_core.plugins import manager
from finetooth_core.settings.recipe import load
from finetooth_hooks import PlanError
from finetooth_hooks.bases import AdapterBase, OptimizerBase
from finetooth_hooks.protocols import (
    BasePart,
    DataPart,
    Device,
    EngineRequest,
    HardwareFacts,
    ModelInfo,
    PlacePart,
    PlanRequest,
    TextPart,
    TrainsPart,
    UpdatesPart,
)
from finetooth_kit.fake_context import FakeContext
from finetooth_toolbox.llama_shape import HEAD_NORMS, llama_facts
from finetooth_torch.backend import TorchBackend, TorchOptions

GIB = 2**30
NOTHING: Any = None
OPTIMIZER: Any = OptimizerBase()
ADAPTER: Any = AdapterBase()
QWEN = {
    "model_type": "qwen3", "hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36,
    "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936,
}  # fmt: skip
LLAMA_70B = {
    "model_type": "llama", "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80,
    "num_attention_heads": 64, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 128256,
}  # fmt: skip
H100 = HardwareFacts(
    "t:gpu", (Device("cuda:0", "NVIDIA H100", int(79.2 * GIB), "sm_90"),), ("bf16", "fp32"), host_memory=512 * GIB
)
SMALL_HOST = HardwareFacts("t:cpu", (Device("cpu", "2 CPU cores", int(23.5 * GIB), "avx512"),), ("bf16", "fp32"))


def job(config: dict[str, Any], parameters: int, hardware: HardwareFacts, tmp_path: Path, *, rank: int = 0) -> Job:
    """All of a model trains on rows of 512, or a low-rank addition does."""
    kit = FakeContext(tmp_path, installed=True)
    context: Any = SimpleNamespace(
        catalog=manager.start().catalog,
        framework="torch",
        build=kit.build,
        recipe=SimpleNamespace(backend="auto"),
        notes=[],
        note=print,
    )
    norms = HEAD_NORMS if config["model_type"] == "qwen3" else {}
    facts = llama_facts(config, renderer="plain", max_positions=4096, block=norms)
    low = kit.build("adapter", {"name": "lora", "rank": rank or 8})
    trained = low.trained_parameters(facts, parameters) if rank else parameters
    train = load({"model": "none"}).train.settings()
    asked = PlanRequest(
        train,
        BasePart(ModelInfo("m", "t:m", config["model_type"], config, parameters, 2 * parameters), facts, NOTHING),
        TrainsPart(low if rank else ADAPTER, trained, base_frozen=bool(rank), accepts_quantised=bool(rank)),
        UpdatesPart(OPTIMIZER, NOTHING, "finetooth-standard:adamw"),
        PlacePart(hardware),
        DataPart(512, 300.0, "train:1", 100.0, (90, 180, 300, 400, 512)),
    )
    backend = TorchBackend(TorchOptions(), kit)
    decided = backend.plan(asked)
    request = EngineRequest(NOTHING, asked.base, asked.trains, asked.updates, TextPart(NOTHING), asked.place)
    plan: Any = SimpleNamespace(train=decided.train, memory=decided.memory)
    return Job(context, plan, None, NOTHING, backend, request, asked, (), (), ())


def refused(of: Job) -> str:
    with pytest.raises(PlanError) as caught:
        check_memory(of)
    assert caught.value.exit_code == 2
    return str(caught.value)


def test_a_whole_8b_on_one_gpu_is_refused_and_an_adapter_named(tmp_path: Path) -> None:
    said = refused(job(QWEN, 8_190_735_360, H100, tmp_path))
    assert said.startswith("memory: the run would take 1") and "NVIDIA H100 has 85.04 GB" in said
    assert "optimizer 65.53 GB" in said and "adapter=lora (" in said
    assert "micro_batch_tokens" not in said and "max_length" not in said  # what trains does not depend on them
    check_memory(job(QWEN, 8_190_735_360, H100, tmp_path, rank=32))  # what it advises does fit


def test_an_adapter_of_a_70b_on_a_small_host_is_refused(tmp_path: Path) -> None:
    said = refused(job(LLAMA_70B, 70_553_706_496, SMALL_HOST, tmp_path, rank=32))
    assert "weights 14" in said and "2 CPU cores has 25.23 GB" in said
    assert "quantization=" in said or "no installed plugin makes it fit" in said
