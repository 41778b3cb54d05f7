"""What trains stands behind the tokens with which the model is asked, over every tokenizer at hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from finetooth_core.plugins import manager
from finetooth_hooks import Conversation, DataError, Message, RecipeError
from finetooth_hooks.data.examples import Pair, Rendered, Weighted
from finetooth_hooks.data.preparation import Rendering
from finetooth_kit import ByteTokenizer, FakeContext
from finetooth_kit.builders import build
from finetooth_kit.shared_data import shared, smollm2
from finetooth_kit.templates import template_tokenizer
from finetooth_rows.asking import ASKED_OTHERWISE_EARLIER
from finetooth_rows.preparing import load_rendering
from finetooth_toolbox.messages.asked import as_asked
from finetooth_toolbox.text.tokenizers import FastTokenizer

__all__ = ["shared", "smollm2"]

LLAMA3 = ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
IM = ("<|im_start|>", "<|im_end|>")
RENDERERS = {one.entry.name: one.entry for one in manager.start().catalog.all("renderer")}
ANSWERS = ("Water.", "\nWater", "\n\n\nWater", " Water", "été", "{", "12", "  two")


@pytest.fixture(scope="module")
def tokenizers(shared: Path, smollm2: FastTokenizer) -> dict[str, Any]:
    def made(template: str, special: Sequence[str], base: str | None) -> FastTokenizer:
        text = (shared / f"templates/{template}.jinja").read_text(encoding="utf-8")
        folder = None if base is None else shared / "tokenizers" / base
        return template_tokenizer(text, special, eos=special[-1], bos=special[0], base=folder)

    return {
        "smollm2": smollm2,
        "bytes": ByteTokenizer(),
        "llama 3 over phi-2": made("llama-3", LLAMA3, "phi-2"),
        "llama 3 over bytes": made("llama-3", LLAMA3, None),
        "chatml over phi-2": made("chatml", IM, "phi-2"),
        "chatml over bytes": made("chatml", IM, None),
        "chatml over phi-3": made("chatml", IM, "phi-3-mini"),
    }


def talk(*texts: str) -> Conversation:
    roles = ("user", "assistant")
    return Conversation(tuple(Message(roles[place % 2], text) for place, text in enumerate(texts)))


@pytest.mark.parametrize("name", RENDERERS)
def test_a_row_can_begin_with_its_prompt(name: str, tokenizers: dict[str, Any], tmp_path: Path) -> None:
    """The same text, begun by the prompt's tokens; all of the answer trains."""
    for called, tokenizer in tokenizers.items():
        try:
            renderer = build(RENDERERS[name], {}, FakeContext(tmp_path, tokenizer=tokenizer))
        except RecipeError:
            continue
        for answer in ANSWERS:
            for conversation in (talk("What is a fjord?", answer), talk("Hi", answer, "What is a fjord?", answer)):
                try:
                    rendered = renderer.render(conversation)
                    asked = tuple(renderer.prompt(conversation.messages[:-1]))
                except DataError:
                    continue
                text = tokenizer.decode(rendered.tokens)
                if not text.startswith(tokenizer.decode(asked)):
                    continue
                where = f"{name} over {called}: {answer!r}"
                mended = as_asked(rendered, asked, tokenizer)
                if mended is None:  # of words that begin with a blank, none continues a text without one
                    assert "phi-3" in called, where
                    continue
                assert mended.tokens[: len(asked)] == asked, where
                assert tokenizer.decode(mended.tokens) == text, where
                rest, said = text[len(tokenizer.decode(asked)) :], trained(mended, tokenizer, len(asked))
                assert rest.lstrip().startswith(said.lstrip()) and answer.strip() in said, where
                assert mended.spans[-1:] == tuple((begin, len(mended.tokens)) for begin, _ in mended.spans[-1:]), where


def trained(rendered: Rendered, tokenizer: Any, begin: int = 0) -> str:
    pairs = zip(rendered.tokens[begin:], rendered.weights[begin:], strict=True)
    return str(tokenizer.decode([token for token, weight in pairs if weight]))


class SpeaksLlama3(FakeContext):
    @property
    def renderer(self) -> Any:
        return build(RENDERERS["llama3"], {}, self)


class SpeaksChatml(FakeContext):
    @property
    def renderer(self) -> Any:
        return build(RENDERERS["chatml"], {}, self)


@pytest.fixture
def context(tokenizers: dict[str, Any], tmp_path: Path) -> FakeContext:
    """Of a model whose tokenizer has one token for two line feeds, and two before a letter."""
    tokenizer = tokenizers["llama 3 over phi-2"]
    asked, told = tokenizer.encode("\n\n"), tokenizer.encode("\n\nWater")
    assert told[: len(asked)] != asked
    return SpeaksLlama3(tmp_path, tokenizer=tokenizer)


def test_supervised_rows_train_behind_their_prompts(context: FakeContext) -> None:
    render = load_rendering(Rendering("finetooth_sft.rendering:build", {"train_on": "assistant"}), context)
    conversation = talk("Hi", "Hello", "What is a fjord?", "Water.")
    rendered = render(conversation)
    asked = tuple(context.renderer.prompt(conversation.messages[:-1]))
    answer = (*context.tokenizer.encode("Water."), context.tokenizer.token_id("<|eot_id|>"))
    assert rendered.tokens == (*asked, *answer)
    assert rendered.weights[len(asked) - 4 :] == (0.0,) * 4 + (1.0,) * len(answer)
    assert rendered.notices == (ASKED_OTHERWISE_EARLIER,)  # "Hello" trains behind two line feeds
    last = load_rendering(Rendering("finetooth_sft.rendering:build", {"train_on": "last"}), context)(conversation)
    assert last.tokens == rendered.tokens and not last.notices
    assert context.tokenizer.decode(rendered.tokens[slice(*rendered.spans[-1])]).endswith("\n\nWater.<|eot_id|>")


def test_parts_with_weights_of_their_own_train_behind_their_prompts(context: FakeContext) -> None:
    render = load_rendering(Rendering("finetooth_sft.rendering:build", {"train_on": "assistant"}), context)
    message = Message("assistant", "Water.", weights=(Weighted(0, 2, 0.0),))
    conversation = Conversation((Message("user", "Hi"), message))
    rendered, plain = render(conversation), context.renderer.render(conversation)
    asked = tuple(context.renderer.prompt(conversation.messages[:-1]))
    answer = len(rendered.tokens) - len(asked)
    assert rendered.tokens == (*asked, *plain.tokens[-answer:]) != plain.tokens
    assert rendered.weights[-answer:] == plain.weights[-answer:] and {*rendered.weights[-answer:]} == {0.0, 1.0}
    assert not rendered.notices


def test_parts_of_an_answer_that_shares_a_token_with_the_markup_stay(
    tokenizers: dict[str, Any], tmp_path: Path
) -> None:
    """Which part the characters that are encoded anew belong to is not known."""
    context = SpeaksChatml(tmp_path, tokenizer=tokenizers["chatml over phi-2"])
    render = load_rendering(Rendering("finetooth_sft.rendering:build", {"train_on": "assistant"}), context)
    message = Message("assistant", "\n\nWater.", weights=(Weighted(0, 2, 0.0),))
    conversation = Conversation((Message("user", "Hi"), message))
    plain, asked = context.renderer.render(conversation), tuple(context.renderer.prompt(conversation.messages[:-1]))
    assert plain.tokens[: len(asked)] != asked
    assert render(conversation).tokens == plain.tokens
    assert [notice for notice in render(conversation).notices if "other tokens" in notice]


def test_pairs_are_compared_behind_their_prompts(context: FakeContext) -> None:
    options = {"bad_rows": "raise", "margins": False}
    render = load_rendering(Rendering("finetooth_preference.rendering:pairs", options), context)
    prompt = (Message("user", "What is a fjord?"),)
    rendered = render(Pair(prompt, (Message("assistant", "Water."),), (Message("assistant", "A car."),)))
    asked = tuple(context.renderer.prompt(prompt))
    for part, said in zip((rendered, *rendered.others), ("Water.", "A car."), strict=True):
        assert part.tokens[: len(asked)] == asked
        assert trained(part, context.tokenizer) == f"{said}<|eot_id|>"
