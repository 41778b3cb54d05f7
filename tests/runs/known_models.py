"""Configs of models of well-known sizes, and how a table names what of them fits."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from finetooth_advise.advice import Advice


def llama(hidden: int, ffn: int, layers: int, heads: int, groups: int, words: int, **more: Any) -> dict[str, Any]:
    return {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": hidden, "intermediate_size": ffn,
        "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": groups,
        "head_dim": hidden // heads, "vocab_size": words, "max_position_embeddings": 8192, "dtype": "bfloat16",
        "tie_word_embeddings": False, **more,
    }  # fmt: skip


def qwen2(*sizes: int, **more: Any) -> dict[str, Any]:
    return {**llama(*sizes), "model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], **more}  # type: ignore[arg-type]


MODELS = {
    "135M": llama(576, 1536, 30, 9, 3, 49152, tie_word_embeddings=True),  # SmolLM2
    "0.5B": qwen2(896, 4864, 24, 14, 2, 151936, tie_word_embeddings=True),  # Qwen2.5
    "3B": llama(3072, 8192, 28, 24, 8, 128256, tie_word_embeddings=True),  # Llama 3.2
    "8B": llama(4096, 14336, 32, 32, 8, 128256),  # Llama 3.1
    "14B": qwen2(5120, 13824, 48, 40, 8, 152064),  # Qwen2.5
    "32B": qwen2(5120, 27648, 64, 40, 8, 152064),  # Qwen2.5
    "70B": llama(8192, 28672, 80, 64, 8, 128256),  # Llama 3.1
    "8x7B": {  # Mixtral
        **llama(4096, 14336, 32, 32, 8, 32000), "model_type": "mixtral", "architectures": ["MixtralForCausalLM"],
        "num_local_experts": 8, "num_experts_per_tok": 2,
    },
}  # fmt: skip
LETTERS = {"whole": "F", "adapter": "L", "8 bits": "8", "4 bits": "4", "recomputed": "R"}
"""Of the table; `R` has activations recomputed, whatever the bits. Behind it `A` has activations elsewhere too, and `S`
frozen layers streamed from there; `-` means that nothing fits."""

FRESH = 700 * 2**20
"""Bytes of a process that has imported what a run imports."""

ROOMY = SimpleNamespace(free=10**12)
"""A disk of a made-up machine: whether a model fits must not hang on the disk of the machine that tests."""


def choice(advice: Advice) -> str:
    if advice.taken is None:
        return "-"
    taken = advice.taken
    return LETTERS.get(taken.kind, "S" if "frozen layers" in taken.label else "A")
