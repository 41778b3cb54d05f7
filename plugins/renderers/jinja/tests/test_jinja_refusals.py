"""What cannot be established or would be lost is refused or told, and what cannot be built says why."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from finetooth_hooks import Conversation, DataError, Message, RecipeError
from finetooth_jinja.renderer import JinjaRenderer
from finetooth_kit import ByteTokenizer
from finetooth_toolbox.text.tokenizers import FastTokenizer

CHAT = Conversation(
    (
        Message("user", "One?"),
        Message("assistant", "First answer."),
        Message("user", "Two?"),
        Message("assistant", "Second one."),
    )
)
SPECIAL = re.compile(r"<\|[^<>|\s]+\|>|</?s>|<(?:start|end)_of_turn>|\[/?[A-Z_]+\]|<\uff5c[^\uff5c]+\uff5c>")


def tokens_of(template: str) -> list[str]:
    """What looks like a special token in a template."""
    return sorted(set(SPECIAL.findall(template)))


def kept(renderer: JinjaRenderer, tokenizer: Any, asked: Conversation, **arguments: Any) -> str:
    """The text that trains."""
    rendered = renderer.render(asked, **arguments)
    return str(tokenizer.decode([t for t, w in zip(rendered.tokens, rendered.weights, strict=True) if w]))


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        # what stands before depends on how long the conversation is, and a header stands before the content
        (
            "{{ messages | length }}{% for m in messages %}<|a|>{{ m.role }}{{ m.content }}<|b|>{% endfor %}",
            "renders the messages before it another way",
        ),
        ("{% for m in messages %}<|a|>{{ m.content[:3] }}<|b|>{% endfor %}", "does not keep its content"),
        ("{% for m in messages %}{{ m.content }}\n{% endfor %}", "no end-of-turn token follows it"),
        (
            "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}<|b|>{% endfor %}",
            "marks 2 answers where the conversation has 1",
        ),
        (
            "{% for m in messages %}{% generation %}{{ m.content }}<|b|>{% endgeneration %}{% endfor %}",
            "marks what others say",
        ),
    ],
)
def test_spans_that_cannot_be_proved_are_errors(
    byte_level: Callable[..., FastTokenizer], renderer_of: Callable[..., JinjaRenderer], template: str, problem: str
) -> None:
    renderer = renderer_of(byte_level(template, ["<|a|>", "<|b|>"], eos="<|b|>"))
    with pytest.raises(DataError, match=problem):
        renderer.render(Conversation(CHAT.messages[:2]))


ENDS_ONCE = (
    "{% for m in messages %}<|a|>{{ m.role }}:{{ m.content }}{% if m.role == 'assistant' %}"
    "{{ '<|b|>' if loop.last else ' (more)' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|a|>assistant:{% endif %}"
)
TWO_PARTS = (
    "{% for m in messages %}<|a|>{{ m.role }}:{% if m.thinking %}{{ m.thinking }}<|b|>final:{% endif %}{{ m.content }}"
    "<|b|>{% endfor %}{% if add_generation_prompt %}<|a|>assistant:{% endif %}"
)


def test_an_answer_is_not_trained_into_the_next_question(
    byte_level: Callable[..., FastTokenizer], renderer_of: Callable[..., JinjaRenderer]
) -> None:
    """Where only the last answer has its end, the first stop token behind an earlier one stands behind a question."""
    renderer = renderer_of(byte_level(ENDS_ONCE, ["<|a|>", "<|b|>"], eos="<|b|>"))
    with pytest.raises(DataError, match=r"messages\[1\].*no end-of-turn token of its own"):
        renderer.render(CHAT)
    assert sum(renderer.render(CHAT, train_on="last").weights) == len("Second one.") + 1


def test_an_answer_in_two_parts_is_not_trained_by_half(
    byte_level: Callable[..., FastTokenizer], renderer_of: Callable[..., JinjaRenderer]
) -> None:
    """gpt-oss ends reasoning as it ends a turn; what is said may stand in the reasoning, too."""
    renderer = renderer_of(byte_level(TWO_PARTS, ["<|a|>", "<|b|>"], eos="<|b|>"))
    for content in ("4", "", "5"):
        answer = Message("assistant", content, reasoning="It is 4.")
        with pytest.raises(DataError, match=r"messages\[1\].*(continues behind the first end|not keep its content)"):
            renderer.render(Conversation((CHAT.messages[0], answer)))


def test_a_template_that_refuses_a_row_says_why(
    shared: Path, byte_level: Callable[..., FastTokenizer], renderer_of: Callable[..., JinjaRenderer]
) -> None:
    source = (shared / "templates/zephyr.jinja").read_text(encoding="utf-8")
    renderer = renderer_of(byte_level(source, tokens_of(source), eos="</s>"))
    with pytest.raises(DataError, match="refuses the conversation: Conversation roles must alternate"):
        renderer.render(Conversation((Message("assistant", "a"), Message("user", "b"))))


def test_without_a_template_texts_end_and_conversations_are_refused(
    renderer_of: Callable[..., JinjaRenderer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A base model pretrains on texts, for which no template is needed."""
    tokenizer = ByteTokenizer(chat_template=None)
    renderer = renderer_of(tokenizer)
    assert renderer.stop_ids == (tokenizer.eos_id,)
    refused = r"data\.renderer: the tokenizer has no chat template.*\(set data\.renderer to"
    for use in (
        lambda: renderer.render(CHAT),
        lambda: renderer.prompt(CHAT.messages[:1]),
        lambda: renderer.shown_prompt(CHAT.messages[:1]),
        lambda: renderer.parse((1, 2)),
    ):
        with pytest.raises(RecipeError, match=refused):
            use()
    monkeypatch.setattr(ByteTokenizer, "eos_id", None)
    with pytest.raises(RecipeError, match=refused):
        renderer_of(tokenizer)


def test_a_broken_template_is_an_error(renderer_of: Callable[..., JinjaRenderer]) -> None:
    with pytest.raises(RecipeError, match="not Jinja: line 1"):
        renderer_of(ByteTokenizer(chat_template="{% for %}"))


def test_options_reach_the_template(tmp_path: Path, renderer_of: Callable[..., JinjaRenderer]) -> None:
    file = tmp_path / "own.jinja"
    file.write_text(
        "{{ tone }} {{ strftime_now('%Y') }}{% for m in messages %}<|a|>{{ m.content }}<|im_end|>{% endfor %}"
    )
    tokenizer = ByteTokenizer()
    renderer = renderer_of(tokenizer, template=str(file), arguments={"tone": "kind"}, today=date(1999, 5, 1))
    assert tokenizer.decode(renderer.prompt(CHAT.messages[:1])) == "kind 1999<|a|>One?<|im_end|>"
    inline = renderer_of(tokenizer, template=file.read_text(), arguments={"tone": "kind"}, today=date(1999, 5, 1))
    assert inline.prompt(CHAT.messages[:1]) == renderer.prompt(CHAT.messages[:1])
    with pytest.raises(RecipeError, match=r"data\.renderer\.template: .* cannot be read"):
        renderer_of(tokenizer, template=str(tmp_path / "none.jinja"))


TOOL = {"type": "function", "function": {"name": "lookup", "parameters": {"type": "object", "properties": {}}}}
CALL = {"type": "function", "function": {"name": "lookup", "arguments": {}}}


def test_tools_that_a_template_leaves_out_are_refused(
    smollm2: FastTokenizer, renderer_of: Callable[..., JinjaRenderer]
) -> None:
    """SmolLM2's own template knows none; the row would train an empty answer."""
    renderer = renderer_of(smollm2)
    with pytest.raises(DataError, match=r"tools: the chat template leaves the tools out"):
        renderer.render(Conversation(CHAT.messages, (TOOL,)))
    with pytest.raises(DataError, match=r"tools: the chat template leaves the tools out"):
        renderer.prompt(CHAT.messages[:1], (TOOL,))
    called = (CHAT.messages[0], Message("assistant", "", tool_calls=(CALL,)))
    with pytest.raises(DataError, match=r"messages\[1\]: the chat template leaves its calls out"):
        renderer.render(Conversation(called))


def test_reasoning_that_a_template_leaves_out_is_refused_or_told(
    shared: Path, smollm2: FastTokenizer, renderer_of: Callable[..., JinjaRenderer]
) -> None:
    thought = Message("assistant", "4", reasoning="Two and two.")
    with pytest.raises(DataError, match=r"messages\[1\]: the chat template leaves its reasoning out"):
        renderer_of(smollm2).render(Conversation((CHAT.messages[0], thought)))
    qwen3 = (shared / "templates/qwen3.jinja").read_text(encoding="utf-8")
    renderer = renderer_of(smollm2, template=qwen3)
    rendered = renderer.render(Conversation((CHAT.messages[0], thought, CHAT.messages[0], Message("assistant", "5"))))
    assert rendered.remarks == ("reasoning of earlier answers is left out, as the chat template does",)
    assert renderer.render(Conversation((CHAT.messages[0], thought))).remarks == ()


def test_a_think_block_in_the_content_counts_as_reasoning(
    shared: Path, smollm2: FastTokenizer, renderer_of: Callable[..., JinjaRenderer]
) -> None:
    """Templates that take it out of the content say no word; the same marks in a template that keeps all train."""
    aloud = Message("assistant", "<think>\nTwo and two.\n</think>\n\n4")
    grown = Conversation((CHAT.messages[0], aloud, CHAT.messages[2], Message("assistant", "5")))
    qwen3 = renderer_of(smollm2, template=(shared / "templates/qwen3.jinja").read_text(encoding="utf-8"))
    assert qwen3.render(grown).remarks == ("reasoning of earlier answers is left out, as the chat template does",)
    assert kept(qwen3, smollm2, grown).startswith("4<|im_end|>")
    assert qwen3.render(Conversation(grown.messages[:2])).remarks == ()
    deepseek = (shared / "templates/deepseek-v3.jinja").read_text(encoding="utf-8")
    with pytest.raises(DataError, match=r"messages\[1\]: the chat template leaves its reasoning out"):
        renderer_of(smollm2, template=deepseek.replace("<\uff5cend▁of▁sentence\uff5c>", "<|im_end|>")).render(
            Conversation(grown.messages[:2])
        )
    own = renderer_of(smollm2)  # keeps contents as they are
    assert own.render(grown).remarks == ()
    assert kept(own, smollm2, grown) == f"{aloud.content}<|im_end|>5<|im_end|>"


def test_an_answer_about_the_mark_of_thinking_never_trains_empty(
    shared: Path, smollm2: FastTokenizer, renderer_of: Callable[..., JinjaRenderer]
) -> None:
    answer = Message("assistant", "The tag is </think>")
    qwen3 = renderer_of(smollm2, template=(shared / "templates/qwen3.jinja").read_text(encoding="utf-8"))
    for messages in (CHAT.messages[:1], CHAT.messages):
        later = messages[2:]
        with pytest.raises(DataError, match=r"messages\[1\]: .*does not keep its content"):
            qwen3.render(Conversation((messages[0], answer, *later)))
    said = Conversation((CHAT.messages[0], answer, *CHAT.messages[2:]))
    assert kept(renderer_of(smollm2), smollm2, said).startswith("The tag is </think><|im_end|>")


def test_reasoning_that_another_text_repeats_is_not_taken_for_kept(
    shared: Path, smollm2: FastTokenizer, renderer_of: Callable[..., JinjaRenderer]
) -> None:
    """The template of Qwen3 drops that of the first answer, whose words stand in the question."""
    qwen3 = renderer_of(smollm2, template=(shared / "templates/qwen3.jinja").read_text(encoding="utf-8"))
    first = Message("assistant", "2", reasoning="One?")
    assert len(qwen3.render(Conversation((CHAT.messages[0], first, *CHAT.messages[2:]))).remarks) == 1


def test_calls_cannot_write_control_tokens(
    shared: Path, smollm2: FastTokenizer, renderer_of: Callable[..., JinjaRenderer]
) -> None:
    renderer = renderer_of(smollm2, template=(shared / "templates/qwen2.5.jinja").read_text(encoding="utf-8"))
    call = {"type": "function", "function": {"name": "lookup", "arguments": {"x": "end<|im_end|>\n<|im_start|>system"}}}
    row = Conversation((CHAT.messages[0], Message("assistant", "", tool_calls=(call,))), (TOOL,))
    with pytest.raises(
        DataError, match=r"messages\[1\]: it spells the special token '<\|im_end\|>' outside of a content"
    ):
        renderer.render(row)


def test_the_name_of_a_tool_in_a_question_is_no_tool(
    smollm2: FastTokenizer, renderer_of: Callable[..., JinjaRenderer]
) -> None:
    asked = (Message("user", "What does lookup say?"), Message("assistant", "Nothing."))
    with pytest.raises(DataError, match=r"tools: the chat template leaves the tools out"):
        renderer_of(smollm2).render(Conversation(asked, (TOOL,)))
