"""What fixtures of models that see or hear are made with."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast

SHARED = Path(os.environ.get("FT_SHARED", Path(__file__).parents[3] / "shared"))
OWN_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for p in m.content %}{% if p.type == 'text' %}{{ p.text }}{% else %}MEDIUM{% endif %}{% endfor %}{% endif %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""Where the official template is not at hand; what stands for a medium in the place of MEDIUM."""
TEXT: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 1024, "bos_token_id": None,
}  # fmt: skip


def tokenizer_with(template: str, special: tuple[str, ...], **named: str) -> Any:
    file = SHARED / "data" / "tokenizers" / "phi-2" / "tokenizer.json"
    if not file.is_file():
        pytest.skip(f"{file} is not there; set FT_SHARED to the folder with the shared data")
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(file), pad_token="<|endoftext|>", **named)
    tokenizer.add_special_tokens({"additional_special_tokens": list(special)})
    tokenizer.chat_template = (SHARED / "data" / "templates" / template).read_text(encoding="utf-8")
    return tokenizer


def saved(folders: pytest.TempPathFactory, config: Any, model: Any, tokenizer: Any, processor: Any) -> Path:
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
