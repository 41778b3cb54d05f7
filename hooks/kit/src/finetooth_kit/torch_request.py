"""What an engine over torch is asked for in tests: a tiny Llama, an adapter that can be switched off, plain SGD."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from finetooth_hooks.bases import AdapterBase, LoaderBase, OptimizerBase
from finetooth_hooks.compute.backends import (
    BasePart,
    Device,
    EngineRequest,
    HardwareFacts,
    PlacePart,
    TextPart,
    TrainsPart,
    UpdatesPart,
)
from finetooth_hooks.errors import UserError
from finetooth_hooks.models import Head, ModelFacts, ModelInfo, Tokenizer

from finetooth_kit.byte_tokenizer import ByteTokenizer
from finetooth_kit.fake_run import plan_of

VOCABULARY = 32
"""Ids of the tiny Llama."""
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
FACTS = ModelFacts(
    hidden_size=16,
    layers=2,
    heads=2,
    kv_heads=1,
    head_dim=8,
    ffn_size=24,
    vocab_size=VOCABULARY,
    max_positions=64,
    layer_path="model.layers",
    body="model",
    head=Head(),
    attention_targets=TARGETS[:4],
    linear_targets=TARGETS,
    renderer="plain",
)
_FILE = "adapter_model.safetensors"


@dataclass(frozen=True)
class TinyLlamaLoader(LoaderBase):
    """A Llama of two tiny layers with random weights, the same ones each time."""

    def describe(self, reference: str) -> ModelInfo:
        return ModelInfo(reference, "under-test:llama", "llama", {"model_type": "llama"}, 5000, 20000)

    def tokenizer(self, reference: str) -> Tokenizer:
        return ByteTokenizer()

    def load(
        self, reference: str, *, framework: str, precision: str, device: str, quantizer: Any = None, meta: bool = False
    ) -> Any:
        torch, transformers = import_module("torch"), import_module("transformers")
        config = transformers.LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=FACTS.hidden_size,
            num_hidden_layers=FACTS.layers,
            num_attention_heads=FACTS.heads,
            num_key_value_heads=FACTS.kv_heads,
            intermediate_size=FACTS.ffn_size,
            max_position_embeddings=FACTS.max_positions,
            tie_word_embeddings=False,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = transformers.LlamaForCausalLM(config).eval()
            for parameter in model.parameters():
                if parameter.dim() == 2:  # larger than usual, so that probabilities differ
                    torch.nn.init.normal_(parameter, std=0.3)
        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "fp64": torch.float64}[precision]
        return model.requires_grad_(False).to(dtype).to(device)


class DeltaAdapter(AdapterBase):
    """Adds a matrix, zero at first, to each linear module of the layers; the matrices train."""

    capabilities = frozenset({"disable"})

    def __init__(self) -> None:
        self._on = True

    def trained_parameters(self, facts: ModelFacts, parameters: int) -> int:
        hidden, inside = facts.hidden_size, facts.heads * facts.head_dim
        keys = facts.kv_heads * facts.head_dim
        return facts.layers * (hidden * (2 * inside + 2 * keys) + 3 * hidden * facts.ffn_size)

    def apply(self, model: Any, facts: ModelFacts, generator: np.random.Generator) -> Any:
        torch = import_module("torch")
        for module in self._modules(model, facts):
            module.register_parameter("delta", torch.nn.Parameter(torch.zeros_like(module.weight)))
            module.register_forward_hook(self._add)
        return model

    def _add(self, module: Any, given: tuple[Any, ...], out: Any) -> Any:
        return out + given[0] @ module.delta.T if self._on else out

    @contextmanager
    def disabled(self, model: Any) -> Iterator[None]:
        self._on = False
        try:
            yield
        finally:
            self._on = True

    def export(self, model: Any, folder: Path, info: ModelInfo) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {name: part.detach().clone() for name, part in self._deltas(model)}
        import_module("safetensors.torch").save_file(tensors, folder / _FILE)

    def restore(self, model: Any, folder: Path) -> None:
        if not (folder / _FILE).is_file():
            raise UserError(f"{folder} holds no adapter")
        tensors = import_module("safetensors.torch").load_file(folder / _FILE)
        for name, part in self._deltas(model):
            part.data.copy_(tensors[name])

    @staticmethod
    def _modules(model: Any, facts: ModelFacts) -> Iterator[Any]:
        for name, module in model.get_submodule(facts.layer_path).named_modules():
            if name.rpartition(".")[2] in facts.linear_targets:
                yield module

    @staticmethod
    def _deltas(model: Any) -> Iterator[tuple[str, Any]]:
        return ((name, part) for name, part in model.named_parameters() if name.endswith(".delta"))


@dataclass(frozen=True)
class PlainSgd(OptimizerBase):
    """Gradient descent of torch, at a rate at which a step can be seen."""

    learning_rate: float = 0.05

    def create(self, named_parameters: Sequence[tuple[str, Any]]) -> Any:
        return import_module("torch").optim.SGD([parameter for _, parameter in named_parameters], lr=self.learning_rate)


class ConstantSchedule:
    """Never changes."""

    def factor(self, step: int, total: int | None) -> float:
        return 1.0

    def observe(self, metrics: Mapping[str, float]) -> None: ...

    def state(self) -> Mapping[str, Any]:
        return {}

    def restore(self, state: Mapping[str, Any]) -> None: ...


def torch_request(*, precision: str = "fp32", micro_batch_tokens: int = 16) -> EngineRequest:
    """What a backend of torch builds the kit's engine from; an engine of it has the same weights each time.

    Args:
        micro_batch_tokens: small enough that the kit's data make several micro-batches.
    """
    plan = plan_of()
    train = replace(plan.train, precision=precision, micro_batch_tokens=micro_batch_tokens, max_grad_norm=0.0)
    loader, adapter = TinyLlamaLoader(), DeltaAdapter()
    info = loader.describe("tiny-llama")
    trained = adapter.trained_parameters(FACTS, info.parameters)
    device = HardwareFacts("under-test:cpu", (Device("cpu", "the CPU", 2**30),), ("fp32", "bf16"))
    return EngineRequest(
        plan=replace(plan, train=train),
        base=BasePart(info, FACTS, loader),
        trains=TrainsPart(adapter, trained, can_disable=True, base_frozen=True),
        updates=UpdatesPart(PlainSgd(), ConstantSchedule()),
        text=TextPart(ByteTokenizer()),
        place=PlacePart(device),
    )
