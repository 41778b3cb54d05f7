"""A model's folder says which markup it speaks: its type with words of its chat template, or with its tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import finetooth
import pytest
import torch
import transformers
from finetooth_kit.byte_tokenizer import CHAT_TEMPLATE
from finetooth_kit.families import SIZES
from finetooth_kit.templates import template_tokenizer
from safetensors.torch import save_file

BAR, LINE = "\uff5c", "\u2581"
DEEPSEEK = [f"<{BAR}{name}{BAR}>" for name in (f"begin{LINE}of{LINE}sentence", f"end{LINE}of{LINE}sentence", "User",
                                               "Assistant")]  # fmt: skip
GLM = ["[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>", "<|endoftext|>"]
MINIMAX = ["]~!b[", "[e~[", "]~b]"]
QWEN = ["<|im_start|>", "<|im_end|>", "<|endoftext|>"]
CODER = (
    "You are Qwen, a helpful AI assistant that can interact with a computer to solve tasks. "
    "You have access to the following {}:"
)
TOOL_TAG = f"{{% set tag = '{BAR}DSML{BAR}' %}}"
EFFORT = "{% if e %}[gMASK]<sop><|system|>Reasoning Effort: {{ e }}{% endif %}"
MODELS: dict[str, tuple[str, list[str], str | None, str]] = {
    "Qwen3-Coder": ("qwen3_moe", QWEN, f"{{# {CODER.format('functions')} #}}", "qwen3_coder"),
    "Qwen3-Coder of July 2025": ("qwen3_moe", QWEN, f"{{# {CODER.format('tools')} #}}", "jinja"),
    "Qwen3, tuned": ("qwen3_moe", QWEN, "", "jinja"),
    "DeepSeek V3.2": ("deepseek_v32", DEEPSEEK, TOOL_TAG, "deepseek_v3_2"),
    "DeepSeek V3.2, without a template": ("deepseek_v32", [*DEEPSEEK, f"{BAR}DSML{BAR}"], None, "deepseek_v3_2"),
    "DeepSeek V3.2-Exp": ("deepseek_v32", DEEPSEEK, "", "jinja"),
    "DeepSeek V4": ("deepseek_v4", DEEPSEEK, TOOL_TAG, "deepseek_v4"),
    "a base without a template": ("deepseek_v4", DEEPSEEK, None, "jinja"),
    "V3 with the tags of V4": ("deepseek_v3", DEEPSEEK, TOOL_TAG, "jinja"),
    "MiniMax-M2": ("minimax_m2", MINIMAX, "{# ]~b]ai <minimax:tool_call> #}", "minimax_m2"),
    "a model like MiniMax": ("minimax_m2", MINIMAX, "", "jinja"),
    "GLM-4.7": ("glm4_moe", GLM, "{% set kept = clear_thinking %}", "glm4_7"),
    "GLM-4.6": ("glm4_moe", GLM, "", "glm4_moe"),
    "GLM-5.2": ("glm_moe_dsa", GLM, EFFORT, "glm5"),
    "GLM-5": ("glm_moe_dsa", GLM, "", "jinja"),
}
"""Type, special tokens, what stands before a plain template if there is one, and the renderer."""


@pytest.mark.parametrize("name", MODELS)
def test_the_folder_chooses_the_renderer(name: str, tmp_path: Path) -> None:
    kind, special, own, renderer = MODELS[name]
    template: Any = None if own is None else own + CHAT_TEMPLATE
    tokenizer = template_tokenizer(template, special, eos=special[1], bos=special[0])
    tokenizer.save(tmp_path / "model")
    sizes = {**SIZES, "vocab_size": tokenizer.vocab_size, "max_position_embeddings": 262144}
    transformers.AutoConfig.for_model(kind, **sizes).save_pretrained(tmp_path / "model")
    save_file({"nothing": torch.zeros(1)}, tmp_path / "model/model.safetensors", metadata={"format": "pt"})
    session = finetooth.session({"model": str(tmp_path / "model"), "output": str(tmp_path / "out")}, data=False)
    decision = session.job.context.decisions["data.renderer"]
    own_renderer = renderer not in ("jinja", "glm4_moe")
    assert decision.value.rpartition(":")[2] == renderer
    assert decision.reason == f"the renderer of the model's {'chat template' if own_renderer else 'family'}"
