"""A tiny Llama with random weights: its loader, and what a family would say of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from finetooth_hooks.bases import LoaderBase
from finetooth_hooks.protocols import Head, ModelFacts, ModelInfo
from finetooth_hooks.testing import ByteTokenizer

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
class LlamaLoader(LoaderBase):
    """A tiny Llama with random weights, the same ones each time."""

    def describe(self, reference: str) -> ModelInfo:
        return ModelInfo(reference, "tests:llama", "llama", {"model_type": "llama"}, 5000, 20000)

    def tokenizer(self, reference: str) -> ByteTokenizer:
        return ByteTokenizer()

    def load(self, reference: str, *, framework: str, precision: str, device: str, quantizer: Any = None) -> Any:
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
