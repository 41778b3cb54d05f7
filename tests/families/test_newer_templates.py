"""Renderers against templates newer than those of their own tests: the ones that trl carries."""

from __future__ import annotations

import inspect
import re
import typing
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from finetooth_core.plugins import manager
from finetooth_core.plugins.builders import load_builder
from finetooth_hooks import Conversation, Message
from finetooth_kit import FakeContext
from finetooth_kit.templates import assert_identical, template_tokenizer
from finetooth_toolbox.text.tokenizers import FastTokenizer

pytestmark = pytest.mark.skipif(not find_spec("trl"), reason="trl is not installed")

SPECIAL = re.compile(r"<\|[^<>|\s]+\|>|<\|?turn\|?>|<\|?channel\|?>")
GEMMA4 = ("<|channel>", "<channel|>", "<|think|>", "<|tool>", "<tool|>", "<|tool_call>", "<tool_call|>",
          "<|tool_response>", "<tool_response|>", "<|turn>", "<turn|>")  # fmt: skip
LFM2 = ("<|tool_list_start|>", "<|tool_call_start|>", "<|tool_call_end|>", "<|tool_response_start|>")
CHAT = (Message("user", "One?"), Message("assistant", "First."), Message("user", "Two?"), Message("assistant", "Last."))
CONVERSATIONS = (Conversation(CHAT), Conversation((Message("system", "Be brief."), *CHAT)))
REASONED = Conversation((Message("user", "One?"), Message("assistant", "First.", reasoning="Think hard.")))
CASES: dict[str, tuple[str, str, str, tuple[str, ...]]] = {
    "qwen3_5_think": ("qwen3_5", "<|im_start|>", "<|im_end|>", ()),
    "qwen3_6": ("qwen3_5", "<|im_start|>", "<|im_end|>", ()),
    "gemma4_v5": ("gemma4", "<bos>", "<eos>", GEMMA4),
    "lfm2_2_5": ("lfm2", "<|startoftext|>", "<|im_end|>", LFM2),
    "lfm2_2_5_v2": ("lfm2", "<|startoftext|>", "<|im_end|>", LFM2),
    "phi3_5": ("phi3", "<s>", "<|endoftext|>", ("<|end|>",)),
    "cohere2": ("cohere2", "<BOS_TOKEN>", "<|END_OF_TURN_TOKEN|>", ()),
    "qwen3_8": ("jinja", "<|im_start|>", "<|im_end|>", ()),
    "nemotron_3_5_lightning": ("jinja", "<s>", "<|im_end|>", ()),
    "diffusion_gemma": ("jinja", "<bos>", "<turn|>", GEMMA4),
}
"""By template: the renderer, the first token, the end and other special tokens. Of those that no renderer of a family
speaks, `jinja` goes by the template."""
SILENT = ("phi3", "cohere2", "jinja")
"""Renderers without reasoning of their own in an answer."""


def made(name: str, folder: Path) -> tuple[Any, FastTokenizer]:
    """The renderer and its tokenizer."""
    renderer, bos, eos, more = CASES[name]
    templates = Path(str(import_module("trl").__file__)).parent / "chat_templates"
    template = (templates / f"{name}.jinja").read_text(encoding="utf-8")
    special = list(dict.fromkeys([*SPECIAL.findall(template), *more, bos, eos]))
    tokenizer = template_tokenizer(template, special, eos=eos, bos=bos)
    (registered,) = [one for one in manager.start().catalog.all("renderer") if one.entry.name == renderer]
    build: Any = load_builder(registered)
    build = getattr(build, "build", build)
    options = typing.get_type_hints(build)[next(iter(inspect.signature(build).parameters))]()
    return build(options, FakeContext(folder, tokenizer=tokenizer)), tokenizer


@pytest.mark.parametrize("name", CASES)
def test_tokens_are_the_templates_and_answers_train(name: str, tmp_path: Path) -> None:
    renderer, tokenizer = made(name, tmp_path)
    for conversation in CONVERSATIONS:
        assert_identical(renderer, tokenizer, conversation)
        rendered = renderer.render(conversation)
        kept = [token for token, weight in zip(rendered.tokens, rendered.weights, strict=True) if weight]
        said = tokenizer.decode(kept)
        assert said.count("First.") == said.count("Last.") == 1 and "One?" not in said and "Be brief" not in said
    if CASES[name][0] not in SILENT:
        assert_identical(renderer, tokenizer, REASONED)
