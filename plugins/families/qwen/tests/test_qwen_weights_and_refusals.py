"""What the renderers do besides the official templates: weights of ranges, default system messages, refusals."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from finetooth_hooks import Conversation, DataError, Message, RecipeError
from finetooth_hooks.data.examples import Weighted
from finetooth_kit import ByteTokenizer, FakeContext
from finetooth_kit.templates import template_tokenizer
from finetooth_qwen import renderer as renderers

END = "<|im_end|>"
BUILDS: dict[str, tuple[Any, Any]] = {
    "qwen2.5": (renderers.build, renderers.QwenOptions()),
    "qwen3": (renderers.build_qwen3, renderers.Qwen3Options()),
    "qwen3-instruct-2507": (renderers.build_qwen3_instruct, renderers.Qwen3InstructOptions()),
}


def built(name: str, tokenizer: Any, folder: Path) -> Any:
    build, options = BUILDS[name]
    return build(options, FakeContext(folder, tokenizer=tokenizer))


def weights_by_letter(renderer: Any, conversation: Conversation) -> list[tuple[str, float]]:
    """The letters of ASCII conversations over bytes, with their weights."""
    rendered = renderer.render(conversation)
    tokenizer = renderer.tokenizer
    return [
        (letter, weight)
        for token, weight in zip(rendered.tokens, rendered.weights, strict=True)
        for letter in [tokenizer.decode([token])]
    ]


def test_ranges_of_content_and_reasoning_weigh_what_they_say(tmp_path: Path) -> None:
    renderer = built("qwen3", ByteTokenizer(), tmp_path)
    answer = Message(
        "assistant",
        "\nabcd",
        reasoning="\nwxyz\n",
        weights=(Weighted(0, 3, 0.5),),
        reasoning_weights=(Weighted(2, 4, 0.0),),
    )
    letters = weights_by_letter(renderer, Conversation((Message("user", "?"), answer)))
    weights = {letter: weight for letter, weight in letters if letter in "wxyzabcd"}
    assert weights == {"w": 1, "x": 0, "y": 0, "z": 1, "a": 0.5, "b": 0.5, "c": 1, "d": 1}


def test_a_think_block_in_the_content_keeps_its_ranges(tmp_path: Path) -> None:
    renderer = built("qwen3", ByteTokenizer(), tmp_path)
    content = "<think>\nWX\n</think>\n\nYZ"
    weights = (Weighted(content.index("X"), content.index("X") + 1, 0.25), Weighted(len(content) - 1, len(content), 0))
    conversation = Conversation((Message("user", "?"), Message("assistant", content, weights=weights)))
    found = {letter: weight for letter, weight in weights_by_letter(renderer, conversation) if letter in "WXYZ"}
    assert found == {"W": 1, "X": 0.25, "Y": 1, "Z": 0}


@pytest.mark.parametrize(
    ("name", "message", "problem"),
    [
        ("qwen2.5", Message("developer", "a"), "no role 'developer'"),
        ("qwen2.5", Message("assistant", "a", reasoning="b"), "no markup for reasoning"),
        ("qwen3-instruct-2507", Message("assistant", "a", reasoning="b"), "no markup for reasoning"),
        ("qwen3", Message("user", "a", reasoning="b"), "no place for reasoning of the role 'user'"),
        ("qwen3", Message("assistant", "lost<think>a</think>b"), "one think block"),
        ("qwen3", Message("assistant", "<think>a</think>b</think>c"), "one think block"),
        ("qwen3", Message("user", "a", tool_calls=({},)), "no place for calls of the role 'user'"),
        ("qwen3", Message("assistant", "", tool_calls=({"function": {"name": "f"}},)), "not of the form"),
        ("qwen3", Message("assistant", "", tool_calls=({"function": {"name": "f", "arguments": "{}"}},)), "the form"),
    ],
)
def test_what_it_cannot_say_is_an_error(tmp_path: Path, name: str, message: Message, problem: str) -> None:
    renderer = built(name, ByteTokenizer(), tmp_path)
    with pytest.raises(DataError, match=rf"messages\[1\].*{problem}"):
        renderer.render(Conversation((Message("user", "a"), message)))


class Foreign(ByteTokenizer):
    """No ChatML tokens."""

    def token_id(self, token: str) -> int | None:
        return None if token.startswith("<|im") else super().token_id(token)


def test_a_tokenizer_without_markup_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"data\.renderer: the tokenizer has no <\|im_start\|>"):
        built("qwen3", Foreign(), tmp_path)


def test_the_default_system_message_is_the_templates(template: Callable[[str], str], tmp_path: Path) -> None:
    tokenizer = template_tokenizer(template("qwen2.5"), ["<|im_start|>", END], eos=END)
    context = FakeContext(tmp_path, tokenizer=tokenizer)
    none = renderers.build(renderers.QwenOptions(default_system=None), context)
    ask = [Message("user", "Hello?")]
    assert tokenizer.decode(none.prompt(ask)) == f"<|im_start|>user\nHello?{END}\n<|im_start|>assistant\n"
    own = renderers.build(renderers.QwenOptions(default_system="Be brief."), context)
    assert own.prompt(ask) == none.prompt([Message("system", "Be brief."), *ask])
