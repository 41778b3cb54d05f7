"""Weights that stay in a file's blocks mean what the gguf package says, and compute as the dequantised load."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from finetooth_gguf.blocks import READERS, BlocksLinear
from finetooth_gguf.loader import GgufLoader, GgufOptions
from finetooth_hooks.errors import RecipeError
from finetooth_hooks.protocols import Stored
from finetooth_modelfiles.gguf.stored import READ
from finetooth_torchshared.quantised import DequantisingLinear, dequantise, stored_weights
from gguf import GGMLQuantizationType, dequantize
from gguf.constants import GGML_QUANT_SIZES
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

SIZES: dict[str, Any] = {
    "vocab_size": 96, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 50000.0},
}  # fmt: skip
MODELS: dict[str, Any] = {
    "llama": (LlamaForCausalLM, LlamaConfig(**SIZES)),
    "llama-tied": (LlamaForCausalLM, LlamaConfig(**SIZES, tie_word_embeddings=True)),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config(**SIZES)),
}
PLAIN = GgufOptions()
KEEPING = GgufOptions(keep_quantised=True)


def random_blocks(kind: GGMLQuantizationType, rows: int, blocks: int) -> np.ndarray[Any, Any]:
    """Bytes at random, but for scales, which are finite."""
    size = GGML_QUANT_SIZES[kind][1]
    rng = np.random.default_rng(0)
    stored = rng.integers(0, 256, (rows, blocks, size), dtype=np.uint8)
    numbers = rng.standard_normal((rows, blocks, 2)).astype(np.float16).view(np.uint8)
    if kind.name == "Q6_K":
        stored[..., 208:] = numbers[..., :2]
    else:
        pair = kind.name not in ("Q4_0", "Q5_0", "Q8_0")
        stored[..., : 4 if pair else 2] = numbers[..., : 4 if pair else 2]
    return stored.reshape(rows, -1)


@pytest.mark.parametrize("kind", sorted(READ), ids=lambda kind: kind.name)
def test_blocks_mean_what_the_gguf_package_says(kind: GGMLQuantizationType) -> None:
    stored = random_blocks(kind, 7, 3)
    module = BlocksLinear(torch.from_numpy(stored.copy()), kind)
    wanted = torch.from_numpy(dequantize(stored, kind))
    assert wanted.isfinite().all() and module.in_features == wanted.shape[1]
    assert torch.equal(module.dequantised(torch.float32), wanted)
    assert torch.equal(module.dequantised(torch.bfloat16), wanted.bfloat16())


def test_every_type_that_may_stay_has_a_reader() -> None:
    assert set(READERS) == READ


def logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return torch.as_tensor(model(input_ids=ids).logits)


def load(path: Path, options: GgufOptions = PLAIN, precision: str = "fp32", quantizer: Any = None) -> Any:
    loader = GgufLoader(options)
    return loader.load(str(path), framework="torch", precision=precision, device="cpu", quantizer=quantizer)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", MODELS)
def test_a_tiny_model_computes_the_same(name: str, precision: str, writer: Callable[..., Path]) -> None:
    """The query and key rows of a Llama are put in order block by block; biases, norms and embeddings are numbers."""
    torch.manual_seed(0)
    made, config = MODELS[name]
    path = writer(name.partition("-")[0], config, made(config), GGMLQuantizationType.Q4_0)
    plain, kept = load(path, precision=precision), load(path, KEEPING, precision)
    info = GgufLoader(KEEPING).describe(str(path))
    assert info.stored == Stored("GGUF Q4_0", 18 / 32) and info.stored_weights == stored_weights(kept)
    assert sum(isinstance(module, DequantisingLinear) for module in kept.modules()) == 14
    ids = torch.arange(1, 33).reshape(2, 16)
    torch.testing.assert_close(logits(kept, ids), logits(plain, ids), rtol=1e-5, atol=1e-5)
    assert not kept.training and all(not parameter.is_meta for parameter in kept.parameters())
    # and back to plain numbers: the same parameters by the same names
    back = dequantise(kept, plain.dtype)
    assert {name: tensor.tolist() for name, tensor in back.state_dict().items()} == {
        name: tensor.tolist() for name, tensor in plain.state_dict().items()
    }


def test_smollm2_stays_as_its_file_stores_it(smollm2_path: Path, smollm2_model: Any) -> None:
    kept = load(smollm2_path, KEEPING)
    ids = torch.randint(0, 49152, (2, 24), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(logits(kept, ids), logits(smollm2_model, ids), rtol=1e-5, atol=1e-4)
    info = GgufLoader(KEEPING).describe(str(smollm2_path))
    assert info.stored is not None
    held = sum(buffer.nbytes for module in kept.modules() if isinstance(module, BlocksLinear)
               for buffer in module.buffers())  # fmt: skip
    assert held == info.stored_weights * info.stored.bytes_per_weight < 0.66 * info.stored_weights


def test_a_type_without_a_reader_is_refused_by_name(writer: Callable[..., Path]) -> None:
    config = LlamaConfig(**{**SIZES, "hidden_size": 256, "intermediate_size": 256})
    path = writer("llama", config, LlamaForCausalLM(config), GGMLQuantizationType.TQ1_0)
    with pytest.raises(RecipeError, match=r"keep_quantised: .*stores blk\.0\.\S+ as TQ1_0, over which nothing"):
        GgufLoader(KEEPING).describe(str(path))


def test_a_file_of_plain_numbers_has_nothing_to_keep(writer: Callable[..., Path]) -> None:
    _, config = MODELS["llama"]
    path = writer("llama", config, LlamaForCausalLM(config))
    with pytest.raises(RecipeError, match="stores its linear weights as plain numbers"):
        GgufLoader(KEEPING).describe(str(path))
