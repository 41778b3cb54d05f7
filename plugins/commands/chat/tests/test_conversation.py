"""Answers that are told as they are written, and stopped."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from finetooth_chat.conversation import Conversation
from finetooth_hooks import Completion, Message, Sampling
from finetooth_hooks.continuous import Written
from finetooth_hooks.data.examples import Parsed
from finetooth_kit import ByteTokenizer, PlainRenderer

TOKENIZER = ByteTokenizer()


class ThinkingRenderer(PlainRenderer):
    """Takes a thought, which the prompt has opened, out of the content once it is closed."""

    def parse(self, tokens: Sequence[int]) -> Parsed:
        parsed = super().parse(tokens)
        thought, closes, rest = parsed.message.content.partition("</think>")
        message = Message("assistant", rest.lstrip(), reasoning=thought) if closes else parsed.message
        return Parsed(message, parsed.stop)


class Batch:
    """Writes a text byte by byte; Ctrl-C comes before the token of a number."""

    def __init__(self, text: str, interrupted: int | None) -> None:
        self.tokens = [*TOKENIZER.encode(text), TOKENIZER.eos_id]
        self.interrupted, self.at, self.asked = interrupted, 0, 0

    def add(self, prompt: Sequence[int], sampling: Sampling, *, adapter: object = None) -> int:
        assert adapter is None  # the engine has none beside its own weights
        self.asked += 1
        return 0

    def __len__(self) -> int:
        return int(self.at < len(self.tokens))

    def step(self) -> list[Written]:
        if self.at == self.interrupted:
            raise KeyboardInterrupt
        token, self.at = self.tokens[self.at], self.at + 1
        done = self.at == len(self.tokens)
        text = TOKENIZER.decode(self.tokens[:-1])
        completion = Completion(tuple(self.tokens), (0.0,) * len(self.tokens), text, "stop", 0) if done else None
        return [Written(0, 0, token, 0.0, completion)]


def conversation(
    text: str, *, interrupted: int | None = None, renderer: type[PlainRenderer] = PlainRenderer
) -> Conversation:
    engine: Any = SimpleNamespace(
        capabilities=frozenset({"generate", "continuous"}), running_batch=lambda: Batch(text, interrupted)
    )
    return Conversation(engine, renderer(TOKENIZER), Sampling(max_tokens=99), None)


@pytest.fixture
def pieces() -> list[str]:
    return []


ANSWERS = [
    "plain",
    "na\u00efve caf\u00e9",
    "\u4f60\u597d, \U0001f44b\U0001f3fd!",
    "  blanks around  \n",
    "two\n\nparts ",
]


@pytest.mark.parametrize("text", ANSWERS)
def test_pieces_are_whole_letters_and_make_the_answer(text: str, pieces: list[str]) -> None:
    answer = conversation(text).answer("hi", pieces.append)
    assert "".join(pieces) == answer.text == text.strip()
    assert len(pieces) > 1
    assert not any("\ufffd" in piece for piece in pieces)


def test_bytes_that_are_no_letter_are_told_in_the_end(pieces: list[str]) -> None:
    chat = conversation("")
    chat.engine.running_batch = lambda: cut  # type: ignore[method-assign]
    cut = Batch("caf\u00e9", None)
    cut.tokens.pop(-2)  # half of the last letter
    answer = chat.answer("hi", pieces.append)
    assert "".join(pieces) == answer.text == "caf\ufffd"


def test_a_thought_is_told_and_is_no_part_of_the_answer(pieces: list[str]) -> None:
    chat = conversation("two and two</think>\n\nfour", renderer=ThinkingRenderer)
    assert chat.answer("2 + 2?", pieces.append).text == "four"
    assert "".join(pieces).startswith("two and two") and "".join(pieces).endswith("\n\nfour")
    assert chat.messages[-1].content == "four"


def test_what_was_said_until_ctrl_c_is_kept(pieces: list[str]) -> None:
    chat = conversation("a long answer", interrupted=6)
    answer = chat.answer("hi", pieces.append)
    assert (answer.text, answer.stop, "".join(pieces)) == ("a long", "interrupted", "a long")
    assert [message.content for message in chat.messages] == ["hi", "a long"]


def test_ctrl_c_before_the_first_token_leaves_the_conversation_as_it_was(pieces: list[str]) -> None:
    chat = conversation("never", interrupted=0)
    assert chat.answer("hi", pieces.append).stop == "interrupted"
    assert (chat.messages, pieces, chat.sampling.seed) == ([], [], 0)


def test_an_engine_that_writes_at_once_tells_it_at_once(pieces: list[str]) -> None:
    completion = Completion((*TOKENIZER.encode("all of it"), TOKENIZER.eos_id), (), "all of it", "stop", 0)
    engine: Any = SimpleNamespace(
        capabilities=frozenset({"generate"}), generate=lambda prompts, sampling: [[completion]]
    )
    answer = Conversation(engine, PlainRenderer(TOKENIZER), Sampling(), None).answer("hi", pieces.append)
    assert (answer.text, answer.stop, pieces) == ("all of it", "stop", ["all of it"])
