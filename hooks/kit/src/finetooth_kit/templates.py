"""Proof of a renderer against the chat template of its family: same tokens, what trains, read back, extension.

    tokenizer = template_tokenizer(template, ["<|im_start|>", "<|im_end|>"], eos="<|im_end|>")
    renderer = build(Options(), FakeContext(tmp_path, tokenizer=tokenizer))

    @settings(max_examples=draws(40), deadline=None)
    @given(conversations(tools=True, reasoning=True))
    def test_it(conversation):
        assert_identical(renderer, tokenizer, conversation)
        assert_trains(renderer, tokenizer, conversation, texts)

Needs transformers, and hypothesis for `conversations`; neither is imported before it is used.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

from finetooth_hooks.data.examples import Conversation, Message, TrainOn
from finetooth_hooks.protocols import Renderer
from finetooth_toolbox.messages.chat_templates import shaped as shaped
from finetooth_toolbox.text.tokenizers import FastTokenizer

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

NOON = datetime.datetime(2026, 1, 15, 12)
"""The date that templates are given when they ask for today's."""


class _Noon:
    """Stands for the class `datetime`. A mock would be made by every call, and takes longer than the template."""

    @staticmethod
    def now() -> datetime.datetime:
        return NOON


def template_tokenizer(
    template: str,
    special: Sequence[str],
    *,
    eos: str,
    bos: str | None = None,
    plain: Sequence[str] = (),
    base: Path | None = None,
) -> FastTokenizer:
    """A tokenizer that has a family's special tokens.

    Args:
        template: Jinja.
        special: spellings of special tokens.
        eos, bos: among them, what the template calls `eos_token` and `bos_token`.
        plain: added tokens that are not special, as `<think>` is in some families: any text that spells them becomes
            them.
        base: folder with a tokenizer.json to extend; without it, tokens are bytes with a few merges of blanks.
    """
    import tokenizers
    import transformers

    backend = _bytes(tokenizers) if base is None else tokenizers.Tokenizer.from_file(str(base / "tokenizer.json"))
    backend.add_special_tokens([tokenizers.AddedToken(name, normalized=False, special=True) for name in special])
    backend.add_tokens([tokenizers.AddedToken(name, normalized=False, special=False) for name in plain])
    fast: Any = transformers.PreTrainedTokenizerFast
    wrapped = fast(tokenizer_object=backend, bos_token=bos, eos_token=eos)
    wrapped.chat_template = template
    return FastTokenizer(wrapped)


def _bytes(tokenizers: Any) -> Any:
    """Bytes, and merges that reach over the borders between markup and text: line feeds, blanks before letters."""
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    feed, blank = "Ċ", "Ġ"  # how byte-level vocabularies spell a line feed and a blank
    merges = [(feed, feed), (feed * 2, feed), (blank, blank), (blank, "a"), (".", feed), (">", feed), ("}", feed)]
    merged = [left + right for left, right in merges]
    vocabulary = {letter: i for i, letter in enumerate([*alphabet, *merged])}
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, merges))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    return backend


def official(
    tokenizer: FastTokenizer, conversation: Conversation, *, ask: bool = False, parts: bool = False, **variables: Any
) -> tuple[list[int], str]:
    """Tokens and text by the tokenizer's chat template.

    Args:
        ask: with the prompt for an answer.
        parts: contents are lists of parts, which is all that templates of some models that see can read.
        variables: what else the template reads, `enable_thinking=False`.

    Raises:
        jinja2.TemplateError: the template refuses the conversation.
    """
    arguments: dict[str, Any] = {
        "tools": [dict(tool) for tool in conversation.tools] or None,
        "add_generation_prompt": ask,
        **variables,
    }
    from transformers.utils import chat_template_utils

    messages = [shaped(message) for message in conversation.messages]
    if parts:
        messages = [{**shape, "content": [{"type": "text", "text": shape["content"]}]} for shape in messages]
    wrapped = tokenizer.wrapped
    with mock.patch.object(chat_template_utils, "datetime", _Noon):  # what a template is given as a variable is text
        text = str(wrapped.apply_chat_template(messages, tokenize=False, **arguments))
    return list(wrapped(text, add_special_tokens=False)["input_ids"]), text  # as `tokenize=True` does after rendering


def spells_special(tokenizer: FastTokenizer, conversation: Conversation) -> bool:
    """Something said in the conversation spells a special token: there renderers differ from templates on purpose."""
    texts = [text for message in conversation.messages for text in (message.content, message.reasoning)]
    return any(tokenizer.encode(text) != tokenizer.encode(text, special=True) for text in texts if text)


def assert_identical(
    renderer: Renderer, tokenizer: FastTokenizer, conversation: Conversation, **variables: Any
) -> None:
    """The tokens are those of the chat template, of the whole and of the prompt before each answer."""
    tokens, text = official(tokenizer, conversation, **variables)
    ours = list(renderer.render(conversation).tokens)
    assert ours == tokens, f"render: {tokenizer.decode(ours)!r} instead of {text!r}"
    for i, message in enumerate(conversation.messages):
        if message.role != "assistant" or not i:
            continue
        before = Conversation(conversation.messages[:i], conversation.tools)
        tokens, text = official(tokenizer, before, ask=True, **variables)
        ours = list(renderer.prompt(before.messages, before.tools))
        assert ours == tokens, f"prompt for message {i}: {tokenizer.decode(ours)!r} instead of {text!r}"


def assert_trains(
    renderer: Renderer,
    tokenizer: FastTokenizer,
    conversation: Conversation,
    texts: Sequence[str],
    *,
    train_on: TrainOn = "assistant",
) -> None:
    """Decoding exactly the trained tokens gives the trained texts with their ends of turn, and nothing else trains.

    Where a token reaches over the border of what trains, it does not train: then only its characters may be missing,
    at the border.

    Args:
        texts: what trains, in order, each in one piece with the end of its turn.
    """
    rendered = renderer.render(conversation, train_on=train_on)
    assert set(rendered.weights) <= {0.0, 1.0}
    runs: list[tuple[bool, list[int]]] = []
    pairs = zip(rendered.weights, rendered.tokens, strict=True)
    for trained, group in groupby(pairs, key=lambda pair: bool(pair[0])):
        runs.append((trained, [token for _, token in group]))
    wanted = [text for text in texts if text]
    places = [i for i, (trained, _) in enumerate(runs) if trained]
    shown = [tokenizer.decode(runs[i][1]) for i in places]
    assert len(places) == len(wanted), f"trained: {shown}, wanted: {wanted}"
    for i, text, decoded in zip(places, wanted, shown, strict=True):
        if decoded == text:
            continue
        before = tokenizer.decode(runs[i - 1][1][-1:]) if i else ""
        after = tokenizer.decode(runs[i + 1][1][:1]) if i + 1 < len(runs) else ""
        trimmed = decoded.strip("\ufffd")  # a letter of several tokens may be cut where its first one is shared
        assert trimmed in text, f"trained {decoded!r}, wanted {text!r}"
        at = text.index(trimmed)
        missing, lost = text[:at], text[at + len(trimmed) :]
        # a token that holds no more than what is missing is shared with nothing, and had to train: an end of turn too
        whole = not missing or (before.endswith(missing) and before != missing) or "\ufffd" in before + decoded
        assert whole, f"{missing!r} does not train, though no token shares it with what stands before ({before!r})"
        shared = not lost or (after.startswith(lost) and after != lost)
        assert shared, f"{lost!r} does not train, though no token shares it with what follows"


def assert_reads_back(
    renderer: Renderer, conversation: Conversation, normal: Callable[[Message], Message], index: int = -1
) -> None:
    """`parse` of what was rendered for an assistant message gives the message, after the markup's own normalisation.

    Args:
        normal: what the markup makes of a message: blanks trimmed, reasoning dropped.
        index: of the message.
    """
    messages = conversation.messages[: len(conversation.messages) if index == -1 else index + 1]
    prompt = renderer.prompt(messages[:-1], conversation.tools)
    tokens = renderer.render(Conversation(messages, conversation.tools)).tokens
    assert tokens[: len(prompt)] == prompt, "the prompt is not how the conversation with its answer begins"
    parsed = renderer.parse(tokens[len(prompt) :])
    assert (parsed.message, parsed.stop) == (normal(messages[-1]), "stop")


def extends(renderer: Renderer, conversation: Conversation) -> bool:
    """The prompt before each answer begins with the tokens of the conversation up to and with the answer before it."""
    messages, tools = conversation.messages, conversation.tools
    answers = [i for i, message in enumerate(messages) if message.role == "assistant" and i]
    for earlier, later in pairwise(answers):
        rendered = renderer.render(Conversation(messages[: earlier + 1], tools), train_on="last")
        tokens = rendered.tokens
        end = max(i for i, weight in enumerate(rendered.weights) if weight) + 1  # the answer's end of turn
        if renderer.prompt(messages[:later], tools)[:end] != tokens[:end]:
            return False
    return True


WEATHER: Mapping[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather at a place, in °C & <b>words</b>.",
        "parameters": {
            "type": "object",
            "properties": {"place": {"type": "string"}, "days": {"type": "integer"}},
            "required": ["place"],
        },
    },
}
CLOCK: Mapping[str, Any] = {
    "type": "function",
    "function": {"name": "clock", "description": "The time.", "parameters": {"type": "object", "properties": {}}},
}


def says_any(conversation: Conversation, marks: Sequence[str]) -> bool:
    """Whether something said spells one of these: hypothesis tries literals of the code, too."""
    return any(mark in repr(conversation.messages) for mark in marks)


def json_values() -> SearchStrategy[Any]:
    """Values of arguments: of every kind that JSON has, and in each other."""
    from hypothesis import strategies as st

    plain = st.none() | st.booleans() | st.integers(-9, 9) | st.floats(-9, 9) | st.text("aé{1 \n", max_size=4)
    return st.recursive(
        plain,
        lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["a", "é"]), inner, max_size=2),
        max_leaves=4,
    )


def conversations(
    *,
    system: bool = True,
    tools: bool = False,
    calls: int = 2,
    any_values: bool = False,
    reasoning: bool = False,
    empty: bool = True,
    content_with_calls: bool = True,
    turns: int = 3,
) -> SearchStrategy[Conversation]:
    """Conversations that end with an answer: of several turns, with a system message or none, tools, calls and results,
    reasoning, empty and odd content, letters of all kinds.

    Args:
        system: some begin with a system message.
        tools: some have tools, and turns in which they are called.
        calls: so many calls at most in one message.
        any_values: some calls have an argument `own` of any kind, see `json_values`.
        reasoning: some answers have reasoning.
        empty: contents may be empty.
        content_with_calls: a message with calls may also hold text.
        turns: at most.
    """
    from hypothesis import strategies as st

    odd = st.sampled_from(
        [" ", "\n", "\n\n", "\t", "word", "été", "😀", "12", "{", '"', "<|im", "</s", "a.", "<b>", "&'"]
    )
    letters = st.characters(codec="utf-8", exclude_characters="\ufffd")
    text = st.one_of(st.text(letters, max_size=24), st.lists(odd, max_size=8).map("".join))
    content = text if empty else text.filter(lambda value: bool(value.strip()))
    thought = st.just("") | content.filter(lambda value: bool(value.strip())) if reasoning else st.just("")
    arguments = st.dictionaries(
        st.sampled_from(["place", "days", "été"]), st.one_of(text, st.integers(-9, 9)), max_size=2
    )
    if any_values:
        own: Any = st.just({}) | json_values().filter(lambda value: value is not None).map(lambda value: {"own": value})
        arguments = st.builds(lambda some, more: {**some, **more}, arguments, own)
    numbers = st.text("abcdefghijkmnpqrstuvwxyz0123456789", min_size=9, max_size=9)
    call = st.builds(
        lambda name, values, id_: {"id": id_, "type": "function", "function": {"name": name, "arguments": values}},
        st.sampled_from(["get_weather", "clock"]),
        arguments,
        numbers,
    )
    with_calls = content if content_with_calls else st.just("")

    @st.composite
    def drawn(draw: Any) -> Conversation:
        messages = [Message("system", draw(content))] if system and draw(st.booleans()) else []
        offered = tools and draw(st.booleans())
        for _ in range(draw(st.integers(1, turns))):
            messages.append(Message("user", draw(content)))
            while offered and draw(st.booleans()):
                made = draw(st.lists(call, min_size=1, max_size=calls, unique_by=lambda made: made["id"]))
                messages.append(Message("assistant", draw(with_calls), reasoning=draw(thought), tool_calls=tuple(made)))
                for tool_call in made:
                    name, id_ = tool_call["function"]["name"], tool_call["id"]
                    messages.append(Message("tool", draw(content), name=name, tool_call_id=id_))
            messages.append(Message("assistant", draw(content), reasoning=draw(thought)))
        return Conversation(tuple(messages), (WEATHER, CLOCK) if offered else ())

    return drawn()


@dataclass(frozen=True)
class Golden:
    """One golden rendering.

    Attributes:
        case: its name.
        ask: with the prompt for an answer.
        variables: what else the template was given.
        text: what the template gave; None if it refuses.
    """

    case: str
    conversation: Conversation
    ask: bool
    variables: Mapping[str, Any]
    text: str | None

    def tokens(self, renderer: Renderer) -> tuple[int, ...]:
        """What a renderer makes of it.

        Raises:
            DataError: it refuses.
        """
        if self.ask:
            return renderer.prompt(self.conversation.messages, self.conversation.tools)
        return renderer.render(self.conversation).tokens


def golden(file: Path, template: str) -> list[Golden]:
    """The golden renderings of one template.

    Args:
        file: JSON lines with `template`, `case`, `messages`, `tools`, `kwargs`, `add_generation_prompt`, and `expected`
            or `expected_error`.
        template: `templates/qwen3.jinja`.
    """
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n") if line]
    renderings = []
    for row in rows:
        if row["template"] == template:
            conversation = Conversation(tuple(map(_message, row["messages"])), tuple(row.get("tools") or ()))
            variables = row.get("kwargs") or {}
            asks = bool(row["add_generation_prompt"])
            renderings.append(Golden(row["case"], conversation, asks, variables, row.get("expected")))
    return renderings


def _message(row: Mapping[str, Any]) -> Message:
    calls = []
    for call in row.get("tool_calls") or ():
        function = dict(call["function"])
        if isinstance(function["arguments"], str):
            function["arguments"] = json.loads(function["arguments"])
        calls.append({**call, "function": function})
    return Message(
        row["role"],
        row.get("content") or "",
        reasoning=row.get("reasoning_content", ""),
        tool_calls=tuple(calls),
        name=row.get("name", ""),
        tool_call_id=row.get("tool_call_id", ""),
    )
