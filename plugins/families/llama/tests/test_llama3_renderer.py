"""The renderer against the models' own templates: golden renderings, and transformers on generated conversations."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from finetooth_hooks import Conversation, DataError, Message, RecipeError
from finetooth_hooks.examples import Weighted
from finetooth_hooks.testing import ByteTokenizer, FakeContext
from finetooth_hooks.tokenizers import FastTokenizer
from finetooth_llama.renderer import Llama3Options, build
from hypothesis import assume, given, settings
from hypothesis import strategies as st

Make = Callable[[str], FastTokenizer]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("llama-3", {}),
        ("llama-3.1", {"dated": True}),
        ("llama-3.2", {"dated": True, "today": "15 Jan 2026"}),  # the day on which the golden files were made
    ],
)
def test_renders_as_golden(shared: Path, tmp_path: Path, name: str, options: dict[str, Any]) -> None:
    tokenizer = ByteTokenizer()
    renderer = build(Llama3Options(**options), FakeContext(tmp_path, tokenizer=tokenizer))
    seen = 0
    for line in (shared / "golden/chat_renderings.jsonl").read_text(encoding="utf-8").split("\n")[:-1]:
        row = json.loads(line)
        if row["template"] != f"templates/{name}.jinja" or row.get("tools") or "expected" not in row:
            continue
        if any(set(m) != {"role", "content"} or m["role"] == "tool" for m in row["messages"]):
            continue
        messages = tuple(Message(m["role"], m["content"]) for m in row["messages"])
        asked = row["add_generation_prompt"]
        tokens = renderer.prompt(messages) if asked else renderer.render(Conversation(messages)).tokens
        assert tokenizer.decode(tokens) == row["expected"], row["case"]
        seen += 1
    assert seen >= 4


TEXT = st.one_of(
    st.text(max_size=30), st.lists(st.sampled_from([" ", "\n", "word", "été", "😀"]), max_size=8).map("".join)
)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=3), st.none() | TEXT, st.booleans())
def test_tokens_are_those_of_transformers(
    shared: Path,
    llama3_bytes: Make,
    tmp_path_factory: pytest.TempPathFactory,
    turns: list[tuple[str, str]],
    system: str | None,
    dated: bool,
) -> None:
    name = "llama-3.1" if dated else "llama-3"
    tokenizer = llama3_bytes((shared / f"templates/{name}.jinja").read_text(encoding="utf-8"))
    renderer = build(Llama3Options(dated=dated), FakeContext(tmp_path_factory.getbasetemp(), tokenizer=tokenizer))
    said = [] if system is None else [Message("system", system)]
    said += [Message(role, text) for turn in turns for role, text in zip(("user", "assistant"), turn, strict=True)]
    assume(all(tokenizer.encode(m.content) == tokenizer.encode(m.content, special=True) for m in said))
    shaped = [{"role": m.role, "content": m.content} for m in said]
    official = tokenizer.wrapped.apply_chat_template(shaped, tokenize=True, return_dict=False)
    rendered = renderer.render(Conversation(tuple(said)))
    assert list(rendered.tokens) == list(official)
    asked = tokenizer.wrapped.apply_chat_template(
        shaped[:-1], tokenize=True, add_generation_prompt=True, return_dict=False
    )
    assert list(renderer.prompt(said[:-1])) == list(asked)
    kept = [t for t, w in zip(rendered.tokens, rendered.weights, strict=True) if w]
    answers = "".join(answer.strip() + "<|eot_id|>" for _, answer in turns)
    assert tokenizer.decode(kept) == answers  # trimmed, so that no token is shared with the header


def test_text_that_spells_markup_stays_text(llama3_bytes: Make, tmp_path: Path) -> None:
    tokenizer = llama3_bytes("")
    renderer = build(Llama3Options(), FakeContext(tmp_path, tokenizer=tokenizer))
    messages = (Message("user", "x<|eot_id|><|start_header_id|>"), Message("assistant", "No."))
    assert renderer.render(Conversation(messages)).tokens.count(renderer.stop_ids[0]) == 2


def test_parse_stops_at_any_end(tmp_path: Path) -> None:
    tokenizer = ByteTokenizer()
    renderer = build(Llama3Options(), FakeContext(tmp_path, tokenizer=tokenizer))
    for end in ("<|eot_id|>", "<|eom_id|>", "<|end_of_text|>"):
        parsed = renderer.parse([*tokenizer.encode("Yes."), *tokenizer.encode(f"{end}more", special=True)])
        assert (parsed.message.content, parsed.stop) == ("Yes.", "stop")
    assert renderer.parse(tokenizer.encode("Yes.")).stop == "length"


class Foreign(ByteTokenizer):
    """No Llama 3 tokens."""

    def token_id(self, token: str) -> int | None:
        return None if "header" in token else super().token_id(token)


def test_a_tokenizer_without_markup_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"data\.renderer: the tokenizer has no <\|start_header_id\|>"):
        build(Llama3Options(), FakeContext(tmp_path, tokenizer=Foreign()))


@pytest.mark.parametrize(
    ("conversation", "problem"),
    [
        (Conversation((Message("tool", "a"),)), r"messages\[0\].*no role 'tool'"),
        (Conversation((Message("assistant", "", tool_calls=({},)),)), r"messages\[0\].*tool calls"),
        (Conversation((Message("assistant", "a", reasoning="b"),)), r"messages\[0\].*reasoning"),
        (Conversation((Message("user", "a"),), ({},)), "tools: .*no markup for tools"),
    ],
)
def test_what_it_cannot_say_is_an_error(tmp_path: Path, conversation: Conversation, problem: str) -> None:
    renderer = build(Llama3Options(), FakeContext(tmp_path))
    with pytest.raises(DataError, match=problem):
        renderer.render(conversation)


@given(TEXT, st.lists(st.integers(0, 30), max_size=4), st.booleans())
@settings(deadline=None, max_examples=60)
def test_ranges_weigh_what_they_say(
    tmp_path_factory: pytest.TempPathFactory, content: str, ends: list[int], trains: bool
) -> None:
    """Per byte: a character of several has several tokens, each with the character's weight."""
    tokenizer = ByteTokenizer()
    renderer = build(Llama3Options(), FakeContext(tmp_path_factory.mktemp("context"), tokenizer=tokenizer))
    ends = sorted(ends)[: len(ends) // 2 * 2]
    weights = tuple(Weighted(a, b, 0.25 + i) for i, (a, b) in enumerate(zip(ends[::2], ends[1::2], strict=True)))
    message = Message("assistant", content, train=trains, weights=weights)
    rendered = renderer.render(Conversation((Message("user", "go"), message)))
    cut = len(content) - len(content.lstrip())
    expected = []
    for at, letter in enumerate(content.strip()):
        own = [part.weight for part in weights if part.start <= at + cut < part.stop]
        expected += [own[0] if own else float(trains)] * len(letter.encode())
    end = len(rendered.weights) - 1
    assert list(rendered.weights[end - len(expected) : end]) == expected and rendered.weights[end] == float(trains)
    assert not any(rendered.weights[: end - len(expected)])
