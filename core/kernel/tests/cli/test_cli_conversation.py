"""What is typed in `ft chat`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from finetooth_kit import ByteTokenizer

TOKENIZER = ByteTokenizer()


@pytest.fixture
def chatted(ft: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Trains the toy, then types lines into `ft chat`; an exception is raised in place of a line."""

    def call(*lines: str | type[BaseException], generate: Any = None) -> Any:
        assert ft("run", "recipe.yaml").code == 0
        said: Iterator[Any] = iter(lines)

        def typed(*arguments: Any, **more: Any) -> str:
            line = next(said)
            if isinstance(line, str):
                return line
            raise line

        monkeypatch.setattr("click.prompt", typed)
        if generate is not None:
            monkeypatch.setattr("finetooth_kit.FakeEngine.generate", generate)
        return ft("chat", "runs/mine", "--max-tokens", "3")

    return call


@pytest.mark.parametrize("word", ["/help", "/?"])
def test_help_lists_what_can_be_typed(chatted: Callable[..., Any], word: str) -> None:
    answer = chatted(word, "/quit")
    assert (answer.code, answer.out) == (0, "")
    assert all(known in answer.err for known in ("/help", "/reset", "/quit", "Ctrl-C"))


def test_an_unknown_word_never_goes_to_the_model(chatted: Callable[..., Any]) -> None:
    answer = chatted("/hlep", "/quit")
    assert answer.out == ""
    assert "error: unknown word /hlep (did you mean /help?)" in answer.err


def test_a_message_may_begin_with_a_path(chatted: Callable[..., Any]) -> None:
    assert chatted("/etc/hosts holds what?", "/quit").out.strip()


def test_loading_is_said_before_anything_else(chatted: Callable[..., Any]) -> None:
    lines = chatted("/quit").err.splitlines()
    assert lines[0] == "loading runs/mine ..."


def test_ctrl_c_during_an_answer_leaves_the_session_open(chatted: Callable[..., Any]) -> None:
    from finetooth_kit import FakeEngine

    generate, asked = FakeEngine.generate, []

    def interrupted(self: Any, prompts: Any, sampling: Any) -> Any:
        asked.append(prompts)
        if len(asked) == 1:
            raise KeyboardInterrupt
        return generate(self, prompts, sampling)

    answer = chatted("stop this", "go on", "/quit", generate=interrupted)
    assert answer.code == 0
    assert "(stopped; nothing was said)" in answer.err
    assert answer.out.strip() and len(asked) == 2


def test_ctrl_c_during_the_one_answer_ends_with_130(ft: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    assert ft("run", "recipe.yaml").code == 0

    def interrupted(*arguments: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr("finetooth_kit.FakeEngine.generate", interrupted)
    answer = ft("chat", "runs/mine", "--prompt", "x")
    assert (answer.code, answer.err.splitlines()[-1]) == (130, "error: interrupted")
