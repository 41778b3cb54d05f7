"""Every official template: the tokens are transformers', and what trains is what the assistant says."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path

import jinja2
import pytest
from finetooth_hooks import Conversation, DataError, Message
from finetooth_jinja.renderer import JinjaOptions, JinjaRenderer, build
from finetooth_kit import FakeContext, draws
from finetooth_kit.templates import (
    assert_trains,
    conversations,
    extends,
    official,
    spells_special,
    template_tokenizer,
)
from finetooth_toolbox.text.tokenizers import FastTokenizer
from hypothesis import given, settings

BAR = "\uff5c"  # what DeepSeek writes for a vertical line
SPECIAL = re.compile(
    rf"<[|{BAR}][^<>|{BAR}\s]{{1,40}}[|{BAR}]>|\[/?[A-Z_]{{3,20}}\]|</?s>|<(?:start|end)_of_(?:turn|image)>|<bos>"
)
NAMES = (
    *("chatml", "deepseek-r1-distill-qwen", "deepseek-v3", "deepseek-v3.1", "gemma-2", "gemma-3", "gpt-oss"),
    *("llama-2-chat", "llama-3", "llama-3.1", "llama-3.2", "mistral-nemo-2407"),
    *("mistral-small-3.2", "mistral-v1", "mistral-v3", "mistral-v3-tekken", "mistral-v7-tekken", "phi-3", "phi-3.5"),
    *("phi-4-reasoning", "qwen2.5", "qwen2.5-vl", "qwen3", "qwen3-instruct-2507", "smollm3", "zephyr"),
)
"""All but those that write no token after the last answer (GLM's, Alpaca's), a blank after a prompt (Vicuna's), or
break off without tools and drop text next to calls (Hermes')."""
ENDS = {
    "gemma": ("<bos>", "<end_of_turn>"),
    "llama-3": ("<|begin_of_text|>", "<|eot_id|>"),
    "qwen": (None, "<|im_end|>"),
    "chatml": (None, "<|im_end|>"),
    "smollm": (None, "<|im_end|>"),
    "hermes": (None, "<|im_end|>"),
    "deepseek": (f"<{BAR}begin▁of▁sentence{BAR}>", f"<{BAR}end▁of▁sentence{BAR}>"),
    "gpt": (None, "<|return|>"),
    "phi-4": (None, "<|im_end|>"),
    "phi": (None, "<|endoftext|>"),
}


def made(shared: Path, folder: Path, name: str) -> tuple[FastTokenizer, JinjaRenderer]:
    source = (shared / f"templates/{name}.jinja").read_text(encoding="utf-8")
    bos, eos = next((ends for start, ends in ENDS.items() if name.startswith(start)), ("<s>", "</s>"))
    special = {eos, *SPECIAL.findall(source), *([bos] if bos else [])}
    tokenizer = template_tokenizer(source, sorted(special), eos=eos, bos=bos)
    return tokenizer, build(JinjaOptions(), FakeContext(folder, tokenizer=tokenizer))


CHATML = r"<\|im_start\|>assistant\n(.*?<\|im_end\|>)"
LLAMA = r"<\|start_header_id\|>assistant<\|end_header_id\|>\n\n(.*?<\|eot_id\|>)"
MISTRAL = r"\[/(?:INST|TOOL_RESULTS)\](?!\[TOOL_RESULTS\])(.*?</s>)"
ANSWERS = {
    "llama-2": r"\[/INST\]\n(.*?</s>)",
    "llama": LLAMA,
    "mistral": MISTRAL,
    "gemma": r"<start_of_turn>model\n(.*?<end_of_turn>)",
    "phi-4": r"<\|im_start\|>assistant<\|im_sep\|>(.*?<\|im_end\|>)",
    "phi": r"<\|assistant\|>\n(.*?<\|end\|>)",
    "zephyr": r"<\|assistant\|>\n(.*?</s>)",
    "gpt": r"<\|start\|>assistant(?=<\|channel\|>)(.*?<\|(?:return|end)\|>)(?!<\|start\|>assistant)",
    "deepseek-v3.1": rf"(?:<{BAR}Assistant{BAR}><think></think>|<{BAR}tool▁output▁end{BAR}>(?!<{BAR}tool▁output))"
    rf"(.*?<{BAR}end▁of▁sentence{BAR}>)",
    "deepseek": rf"(?:<{BAR}Assistant{BAR}>|<{BAR}tool▁outputs▁end{BAR}>)(.*?<{BAR}end▁of▁sentence{BAR}>)",
    "": CHATML,
}
"""What an answer is by the words of each template, by the beginning of its name: all that stands behind the header with
which the prompt ends, up to the end of the turn. Contents that spell special tokens are left out before."""


@pytest.mark.parametrize("name", NAMES)
def test_tokens_and_mask(shared: Path, tmp_path: Path, name: str) -> None:
    """Tokens are transformers', and decoding exactly those that train gives the answers with their ends of turn."""
    tokenizer, renderer = made(shared, tmp_path, name)
    answers = re.compile(next(words for start, words in ANSWERS.items() if name.startswith(start)), re.DOTALL)
    seen: list[str] = []

    @settings(deadline=None, max_examples=draws(20), derandomize=True)
    @given(conversations(tools=True, reasoning=True, turns=2))
    def check(conversation: Conversation) -> None:
        if spells_special(tokenizer, conversation):
            return
        try:
            tokens, text = official(tokenizer, conversation)
        except (jinja2.TemplateError, TypeError) as refused:
            with pytest.raises(DataError):
                renderer.render(conversation)
            seen.append(f"refused: {refused}")
            return
        try:
            rendered = renderer.render(conversation)
        except DataError as error:
            assert re.search(REFUSALS, str(error)), error
            seen.append(str(error))
            return
        assert list(rendered.tokens) == tokens, text
        seen.append("")
        said = answers.findall(text)
        speakers = [message for message in conversation.messages if message.role == "assistant"]
        assert len(said) == len(speakers), (said, text)
        for message, written in zip(speakers, said, strict=True):
            assert message.content.strip() in written
            assert all(called["function"]["name"] in written for called in message.tool_calls)
        assert_trains(renderer, tokenizer, conversation, said)
        if renderer.extension:
            with suppress(DataError):  # what begins the conversation may be refused where the whole is not
                assert extends(renderer, conversation)

    check()
    assert "" in seen, seen


REFUSALS = "cannot be established|changes its text|leaves (the|its|all but 1 of its) (tools|calls|reasoning)"


@pytest.mark.parametrize("effort", ["low", "high"])
def test_how_much_a_model_shall_think_is_an_argument(shared: Path, tmp_path: Path, effort: str) -> None:
    """As Mistral Small 4 and gpt-oss read it, here by the official template of the latter."""
    tokenizer, plain = made(shared, tmp_path, "gpt-oss")
    renderer = build(JinjaOptions(arguments={"reasoning_effort": effort}), FakeContext(tmp_path, tokenizer=tokenizer))
    conversation = Conversation((Message("user", "2+2?"), Message("assistant", "4")))
    tokens, text = official(tokenizer, conversation, reasoning_effort=effort)
    assert list(renderer.render(conversation).tokens) == tokens and f"Reasoning: {effort}" in text
    asked = official(tokenizer, Conversation(conversation.messages[:1]), ask=True, reasoning_effort=effort)[0]
    assert list(renderer.prompt(conversation.messages[:1])) == asked
    assert renderer.render(conversation).tokens != plain.render(conversation).tokens
