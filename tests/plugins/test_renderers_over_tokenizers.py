"""Every renderer over every tokenizer at hand: what an answer begins with is what the model saw there.

A tokenizer may have a beginning-of-text token that it never puts (SmolLM2's is `<|im_start|>`, with which a turn
begins). transformers' own `apply_chat_template` is the witness.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from finetooth_core.plugins import manager
from finetooth_hooks import Conversation, DataError, Message, RecipeError
from finetooth_kit import ByteTokenizer, FakeContext
from finetooth_kit.builders import build
from finetooth_kit.shared_data import shared, smollm2
from finetooth_kit.templates import template_tokenizer
from finetooth_toolbox.text.tokenizers import FastTokenizer

__all__ = ["shared", "smollm2"]

IM = ("<|im_start|>", "<|im_end|>")
MADE = {  # template, its special tokens, the token that ends and the one that begins, and whether it is put by itself
    "chatml whose turns begin with bos": ("chatml", IM, "<|im_end|>", "<|im_start|>", False),
    "hermes": ("hermes-2-pro-tools", (*IM, "<|begin_of_text|>"), "<|im_end|>", "<|begin_of_text|>", False),
    "vicuna": ("vicuna", ("<s>", "</s>"), "</s>", "<s>", False),
    "zephyr that puts bos": ("zephyr", ("<s>", "</s>"), "</s>", "<s>", True),
    "llama 2": ("llama-2-chat", ("<s>", "</s>"), "</s>", "<s>", True),
    "llama 3": ("llama-3", ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
                "<|eot_id|>", "<|begin_of_text|>", True),
    "chatml with a bos it never writes": ("chatml", (*IM, "<s>"), "<|im_end|>", "<s>", False),
}  # fmt: skip
READ = ("phi-2", "phi-3-mini", "t5-small")
WORDS = ("zephyr", "vicuna", "alpaca")
"""Renderers whose controls are the tokenizer's own."""
OF_NO_FAMILY = ("hermes", "vicuna", "alpaca")
CONVERSATION = Conversation((Message("user", "What is a fjord?"), Message("assistant", "Water.")))
RENDERERS = {one.entry.name: one.entry for one in manager.start().catalog.all("renderer")}


class Spelled(ByteTokenizer):
    """Knows every control token, so that every renderer can be built; it never puts its bos, `<|im_start|>`."""

    @property
    def bos_id(self) -> int | None:
        return self.token_id("<|im_start|>")


@pytest.fixture(scope="module")
def tokenizers(shared: Path, smollm2: FastTokenizer) -> dict[str, Any]:
    from tokenizers.processors import TemplateProcessing
    from transformers import AutoTokenizer

    found: dict[str, Any] = {"smollm2": smollm2, "every control token": Spelled(size=600)}
    for name in READ:
        found[name] = FastTokenizer(AutoTokenizer.from_pretrained(shared / "tokenizers" / name))
    for name, (template, special, eos, bos, puts) in MADE.items():
        text = (shared / f"templates/{template}.jinja").read_text(encoding="utf-8")
        found[name] = template_tokenizer(text, special, eos=eos, bos=bos)
        if puts:
            wrapped = found[name].wrapped
            wrapped.backend_tokenizer.post_processor = TemplateProcessing(
                single=f"{bos} $A", pair=f"{bos} $A $B", special_tokens=[(bos, wrapped.bos_token_id)]
            )
            assert found[name].adds_bos
    return found


def rendered(name: str, tokenizer: Any, folder: Path) -> Iterator[tuple[Any, tuple[int, ...]]]:
    """By a renderer, if it can be built over the tokenizer and has a place for the conversation."""
    try:
        renderer = build(RENDERERS[name], {}, FakeContext(folder, tokenizer=tokenizer))
        yield renderer, renderer.render(CONVERSATION).tokens
    except (RecipeError, DataError):
        return


def written_by_the_model(tokenizer: Any) -> str:
    """What transformers makes of the conversation by the model's own template; empty without one."""
    if not isinstance(tokenizer, FastTokenizer) or tokenizer.chat_template is None:
        return ""
    messages = [{"role": one.role, "content": one.content} for one in CONVERSATION.messages]
    return str(tokenizer.wrapped.apply_chat_template(messages, tokenize=False, tools=[]))


@pytest.mark.parametrize("name", RENDERERS)
def test_a_beginning_is_written_once_and_only_where_the_model_saw_it(
    name: str, tokenizers: dict[str, Any], tmp_path: Path
) -> None:
    seen = 0
    for called, tokenizer in tokenizers.items():
        for renderer, tokens in rendered(name, tokenizer, tmp_path):
            seen += 1
            begin = "" if tokenizer.bos_id is None else tokenizer.decode([tokenizer.bos_id])
            text = tokenizer.decode(tokens[:2])
            assert tokens[:2] != (tokenizer.bos_id,) * 2, f"{name} over {called} begins with {text!r}"
            if tokens[0] == tokenizer.bos_id:
                of_markup = name == "jinja" or (name not in WORDS and begin in renderer.controls)
                own = written_by_the_model(tokenizer).startswith(begin)
                assert tokenizer.adds_bos or own or of_markup, f"{name} over {called} begins with {text!r}"
            elif name in OF_NO_FAMILY:
                assert not tokenizer.adds_bos, f"{name} over {called} begins with {text!r}"
    assert seen


def test_hermes_is_smollm2s_own_markup(tokenizers: dict[str, Any], tmp_path: Path) -> None:
    """The pair that two guides name; without tools and with a system message of the row's own."""
    tokenizer = tokenizers["smollm2"]
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is a fjord?"}]
    expected = tokenizer.wrapped.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    ((renderer, _),) = rendered("hermes", tokenizer, tmp_path)
    asked = renderer.prompt([Message(one["role"], one["content"]) for one in messages])
    assert tokenizer.decode(asked) == expected
