"""Tiny random vision-language models with a real tokenizer, in folders as transformers writes them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import PreTrainedTokenizerFast

SHARED = Path(os.environ.get("FT_SHARED", Path(__file__).parents[3] / "shared"))
QWEN_TOKENS = ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
GEMMA_TOKENS = ("<bos>", "<start_of_turn>", "<end_of_turn>", "<start_of_image>", "<image_soft_token>", "<end_of_image>")


@pytest.fixture(scope="session")
def captions() -> Path:
    """Conversations about images; the images lie beside it."""
    path = SHARED / "data" / "vision" / "captions.jsonl"
    if not path.is_file():
        pytest.skip(f"{path} is not there; set FT_SHARED to the folder with the shared data")
    return path


@pytest.fixture(scope="session")
def bad_data() -> Path:
    """The folder of deliberately broken files."""
    path = SHARED / "data" / "bad"
    if not path.is_dir():
        pytest.skip(f"{path} is not there; set FT_SHARED to the folder with the shared data")
    return path


def _tokenizer(template: str, special: tuple[str, ...], **named: str) -> Any:
    file = SHARED / "data" / "tokenizers" / "phi-2" / "tokenizer.json"
    if not file.is_file():
        pytest.skip(f"{file} is not there; set FT_SHARED to the folder with the shared data")
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(file), pad_token="<|endoftext|>", **named)
    tokenizer.add_special_tokens({"additional_special_tokens": list(special)})
    tokenizer.chat_template = (SHARED / "data" / "templates" / template).read_text(encoding="utf-8")
    return tokenizer


@pytest.fixture(scope="session")
def qwen_vl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Qwen2.5-VL, two layers and two in the vision tower."""
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    tokenizer = _tokenizer("qwen2.5-vl.jinja", QWEN_TOKENS, eos_token="<|im_end|>")
    ids = {name: tokenizer.convert_tokens_to_ids(name) for name in QWEN_TOKENS}
    config = transformers.Qwen2_5_VLConfig(
        text_config={
            "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
            "num_key_value_heads": 2, "vocab_size": len(tokenizer), "max_position_embeddings": 1024,
            "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0},
            "bos_token_id": None, "eos_token_id": ids["<|im_end|>"], "pad_token_id": tokenizer.pad_token_id,
        },
        vision_config={
            "depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "out_hidden_size": 32,
            "window_size": 56, "fullatt_block_indexes": [1],
        },
        image_token_id=ids["<|image_pad|>"], video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"], vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=False,
    )  # fmt: skip
    processor = Qwen2VLImageProcessorPil(min_pixels=28 * 28, max_pixels=112 * 112)
    return _saved(tmp_path_factory, config, transformers.Qwen2_5_VLForConditionalGeneration, tokenizer, processor)


@pytest.fixture(scope="session")
def gemma3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Gemma 3 with images, four tokens each."""
    from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

    names = {"boi_token": "<start_of_image>", "image_token": "<image_soft_token>", "eoi_token": "<end_of_image>"}
    tokenizer = _tokenizer(
        "gemma-3.jinja", GEMMA_TOKENS, eos_token="<end_of_turn>", bos_token="<bos>", extra_special_tokens=names
    )
    ids = {name: tokenizer.convert_tokens_to_ids(name) for name in GEMMA_TOKENS}
    config = transformers.Gemma3Config(
        text_config={
            "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
            "num_key_value_heads": 2, "head_dim": 8, "vocab_size": len(tokenizer), "max_position_embeddings": 1024,
            "sliding_window": 64, "layer_types": ["sliding_attention", "full_attention"],
            "bos_token_id": ids["<bos>"], "eos_token_id": ids["<end_of_turn>"],
            "pad_token_id": tokenizer.pad_token_id,
        },
        vision_config={
            "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
            "image_size": 56, "patch_size": 14,
        },
        mm_tokens_per_image=4, boi_token_index=ids["<start_of_image>"], eoi_token_index=ids["<end_of_image>"],
        image_token_index=ids["<image_soft_token>"],
    )  # fmt: skip
    images = Gemma3ImageProcessorPil(size={"height": 56, "width": 56})
    processor = transformers.Gemma3Processor(images, tokenizer, image_seq_length=4)
    return _saved(tmp_path_factory, config, transformers.Gemma3ForConditionalGeneration, tokenizer, processor)


def _saved(folders: pytest.TempPathFactory, config: Any, model: Any, tokenizer: Any, processor: Any) -> Path:
    folder = folders.mktemp("model")
    with torch.random.fork_rng():
        torch.manual_seed(11)
        made = model(config)
        for name, parameter in made.named_parameters():
            if "lm_head" in name or "embed_tokens" in name:
                parameter.data.mul_(10)  # logits that differ, so that a wrong token shows
            elif "project" in name and not parameter.any():
                parameter.data.normal_(std=0.1)  # else images would say nothing
        made.save_pretrained(folder)
    processor.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(params=["qwen_vl", "gemma3"])
def vision_model(request: pytest.FixtureRequest) -> Path:
    """Each of them."""
    found: Path = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A cache of its own for prepared data."""
    monkeypatch.setenv("FT_CACHE", str(tmp_path / "cache"))
    yield tmp_path / "cache"
