"""The torch engine keeps the engine's contract over a tiny Llama with LoRA, sampling included."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from finetooth_hooks import ScalarHead
from finetooth_hooks.protocols import Head, ModelFacts, ModelInfo
from finetooth_hooks.testing import ByteTokenizer, FakeContext, entries_of, parametrize_engine
from toy_numpy.making import request

pytest.importorskip("finetooth_torch")
pytest.importorskip("finetooth_lora")
from toy_numpy.torch_twin import TorchSgd

VOCAB = 32
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
FACTS = ModelFacts(
    hidden_size=16,
    layers=2,
    heads=2,
    kv_heads=1,
    head_dim=8,
    ffn_size=24,
    vocab_size=VOCAB,
    max_positions=64,
    layer_path="model.layers",
    body="model",
    head=Head(),
    attention_targets=TARGETS[:4],
    linear_targets=TARGETS,
    renderer="plain",
)


@dataclass(frozen=True)
class LlamaLoader:
    """A tiny Llama with random weights, the same ones each time."""

    def describe(self, reference: str) -> ModelInfo:
        return ModelInfo(reference, "tests:llama", "llama", {"model_type": "llama"}, 5000, 20000)

    def tokenizer(self, reference: str) -> ByteTokenizer:
        return ByteTokenizer()

    def load(self, reference: str, *, framework: str, precision: str, device: str) -> Any:
        import torch
        from transformers import LlamaConfig, LlamaForCausalLM

        config = LlamaConfig(
            vocab_size=VOCAB,
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            intermediate_size=24,
            max_position_embeddings=64,
            tie_word_embeddings=False,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = LlamaForCausalLM(config).eval()
            for parameter in model.parameters():
                if parameter.dim() == 2:  # larger than usual, so that probabilities differ
                    torch.nn.init.normal_(parameter, std=0.3)
        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "fp64": torch.float64}[precision]
        return model.requires_grad_(False).to(dtype)


def engine(precision: str = "fp32", budget: int = 16, head: ScalarHead | None = None) -> Any:
    """A fresh torch engine."""
    from finetooth_torch.backend import TorchBackend, TorchOptions

    (lora,) = [entry for entry in entries_of("finetooth_lora.plugin") if entry.kind == "adapter"]
    adapter = FakeContext(Path(), entries=(lora,)).build("adapter", {"name": lora.name, "rank": 4})
    made = request(budget=budget, loader=LlamaLoader())
    made = replace(
        made,
        plan=replace(made.plan, train=replace(made.plan.train, precision=precision)),
        facts=FACTS,
        hardware=replace(made.hardware, attention=("sdpa",)),
        adapter=adapter,
        optimizer=TorchSgd(0.05),
        head=head,
    )
    return TorchBackend(TorchOptions()).engine(made)


@parametrize_engine(engine, vocab_size=VOCAB, name="torch-fp32")
def test_torch_engine_conforms(check: Callable[[], None]) -> None:
    check()


@parametrize_engine(partial(engine, head=ScalarHead()), vocab_size=VOCAB, name="torch-fp32-sequence-head")
def test_torch_engine_with_a_head_conforms(check: Callable[[], None]) -> None:
    check()


@parametrize_engine(
    partial(engine, head=ScalarHead(bias=True, exported_as="token")), vocab_size=VOCAB, name="torch-fp32-token-head"
)
def test_torch_engine_with_a_head_of_steps_conforms(check: Callable[[], None]) -> None:
    check()


@pytest.mark.slow
@parametrize_engine(partial(engine, "bf16", head=ScalarHead()), vocab_size=VOCAB, name="torch-bf16-head")
def test_torch_engine_with_a_head_conforms_in_bf16(check: Callable[[], None]) -> None:
    check()


@pytest.mark.slow
@parametrize_engine(partial(engine, "bf16"), vocab_size=VOCAB, name="torch-bf16")
def test_torch_engine_conforms_in_bf16(check: Callable[[], None]) -> None:
    check()


@pytest.mark.slow
@parametrize_engine(partial(engine, "fp16", 1000), vocab_size=VOCAB, name="torch-fp16-one-batch")
def test_torch_engine_conforms_in_fp16(check: Callable[[], None]) -> None:
    check()
