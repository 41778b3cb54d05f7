"""The environments against the conformance kit, and by hand-made turns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from finetooth_basicenvironments.arithmetic import NotArithmetic, calculate
from finetooth_basicenvironments.calculator import Calculator, CalculatorOptions
from finetooth_basicenvironments.conversation import Conversation
from finetooth_basicenvironments.guess import Guess, GuessOptions
from finetooth_basicenvironments.search import Index, Search, SearchOptions, passages
from finetooth_hooks import DataError, Message, RecipeError, Task, Turn
from finetooth_kit import parametrize_with_checks
from hypothesis import given
from hypothesis import strategies as st


@parametrize_with_checks("finetooth_basicenvironments.plugin")
def test_conforms(check: Any) -> None:
    check()


def turn(text: str, *calls: tuple[str, Any], stop: Any = "stop") -> Turn:
    made = tuple({"id": f"c{i}", "function": {"name": name, "arguments": a}} for i, (name, a) in enumerate(calls))
    return Turn((1,), text, Message("assistant", text, tool_calls=made), stop)


def test_a_conversation_continues_whatever_the_policy_says() -> None:
    said = [("user", "One."), ("system", "Be brief."), ("assistant", "1"), ("user", "Two."), ("assistant", "2")]
    task = Task("Count.", {"remaining_turns": [{"role": role, "content": text} for role, text in said]})
    episode = Conversation().episode(task, 0)
    assert episode.begin().messages[0].content == "Count."
    shown = [episode.answer(turn(text)).observation for text in ("yes", "no", "2")]
    assert [[m.content for m in of.messages] if of else None for of in shown] == [["One.", "Be brief."], ["Two."], None]


@pytest.mark.parametrize(
    ("column", "words"),
    [
        (None, "no such list of messages"),
        ([{"role": "tool", "content": "4"}], "more than messages of text"),
        ([{"role": "assistant", "content": "2"}], "follow each other"),
    ],
)
def test_a_conversation_that_cannot_continue_is_refused(column: Any, words: str) -> None:
    with pytest.raises(DataError, match=words):
        Conversation().episode(Task("Count.", {"remaining_turns": column}), 0)


def test_a_number_is_found() -> None:
    episode = Guess(GuessOptions(guesses=4)).episode(Task("Guess.", {"number": 42}), 0)
    assert episode.begin().messages[0].content == "Guess."
    said = [episode.answer(turn(text)) for text in ("is it 10?", "dunno", "not 10 but 50", "42!")]
    shown = [one.observation.messages[0].content for one in said[:3] if one.observation]
    assert shown == ["10 is too low.", "Say a number.", "50 is too high."]
    assert [one.reward for one in said] == [0.0, 0.0, 0.0, 1.0] and said[3].observation is None


def test_a_last_guess_is_worth_how_near_it_is() -> None:
    environment = Guess(GuessOptions(low=0, high=100, guesses=1, near=0.5))
    task = Task("Guess.", {"number": 40})
    assert environment.episode(task, 0).answer(turn("60")).reward == pytest.approx(0.5 * 0.8)
    assert environment.episode(task, 0).answer(turn("?")).reward == 0.0
    with pytest.raises(DataError, match="101 is not a whole number from 0 to 100"):
        environment.episode(Task("Guess.", {"number": 101}), 0)


def test_a_group_has_one_hidden_number() -> None:
    """Drawn from the seed, and not always the same one."""
    options = GuessOptions(low=1, high=1000)

    def told(seed: int) -> list[str]:
        episode = Guess(options).episode(Task("Guess."), seed)
        shown = [episode.answer(turn(str(guess))).observation for guess in (250, 500, 750)]
        return [one.messages[0].content if one else "found" for one in shown]

    assert told(1) == told(1) and len({tuple(told(seed)) for seed in range(20)}) > 1


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("12 * (3 + 4)", "84"),
        ("0.1 + 0.2", "0.3"),
        ("-7 // 2", "-4"),
        ("7 % 3", "1"),
        ("2 ** -2", "0.25"),
        ("1 / 3", "0.333333333333"),
        (" +5 ", "5"),
    ],
)
def test_values_are_exact(expression: str, value: str) -> None:
    assert calculate(expression) == value


NONE = ["9**9**9", "2**61", "10**18*10", "1/0", "0**-1", "__import__('os')", "(lambda: 1)()", "[1][0]", "1 if 1 else 2",
        "'a' * 9", "1e400", "1j", "True + 1", "", "(" * 99 + ")" * 99, "1" * 300, "x\x00"]  # fmt: skip


@pytest.mark.parametrize("expression", NONE)
def test_nothing_else_has_a_value(expression: str) -> None:
    with pytest.raises(NotArithmetic):
        calculate(expression)


@given(st.integers(-9999, 9999), st.integers(-9999, 9999), st.sampled_from(["+", "-", "*"]))
def test_values_are_those_of_whole_numbers(a: int, b: int, sign: str) -> None:
    truth = {"+": a + b, "-": a - b, "*": a * b}[sign]
    assert calculate(f"({a}) {sign} ({b})") == str(truth)


def test_a_calculator_is_called_and_the_answer_judged() -> None:
    episode = Calculator(CalculatorOptions()).episode(Task("What is 6 times 7?", {"answer": "42"}), 0)
    tools = episode.begin().tools
    assert tools[0]["function"]["name"] == "calculate"
    called = episode.answer(turn("", ("calculate", {"expression": "6*7"}), ("calculate", {"expression": "x"})))
    assert called.observation is not None and called.metrics == {"calls": 2.0, "refused": 1.0}
    said = [(one.role, one.tool_call_id, one.content[:5]) for one in called.observation.messages]
    assert said == [("tool", "c0", "42"), ("tool", "c1", "error")]
    other = episode.answer(turn("", ("google", {}), ("calculate", {"expression": 3})))
    assert other.observation is not None and other.metrics["refused"] == 2.0
    assert episode.answer(turn("So it is 42.")).reward == 1.0
    assert episode.answer(turn("It is 4,242.")).reward == 0.0
    with pytest.raises(DataError, match="holds no number"):
        Calculator(CalculatorOptions()).episode(Task("?", {"answer": "two"}), 0)


def test_texts_are_searched(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("The lamp is in the cellar.\n\n" + "The key is under the old stone. " * 20)
    (tmp_path / "b.md").write_text("Nothing but grass.")
    index = Index(tmp_path, 100)
    assert index.find("where is the LAMP", 1).startswith("[a.txt] The lamp")
    assert index.find('grass OR "', 5) == "[b.md] Nothing but grass." and index.find("zebra", 5) == "nothing found"
    environment = Search(SearchOptions(folder=str(tmp_path)))
    episode = environment.episode(Task("Where is the key?", {"answer": ["Under the stone", "beneath"]}), 0)
    found = episode.answer(turn("", ("search", {"query": "key"})))
    assert found.observation is not None and "old stone" in found.observation.messages[0].content
    assert episode.answer(turn("It lies under the STONE!")).reward == 1.0
    assert episode.answer(turn("underneath the stones")).reward == 0.0
    with pytest.raises(DataError, match="not a text to compare with"):
        environment.episode(Task("?", {}), 0)
    (tmp_path / "none").mkdir()
    with pytest.raises(RecipeError, match=r"holds no \*\.txt"):
        Index(tmp_path / "none", 100)


@given(st.text(alphabet="ab \n", max_size=200), st.integers(5, 40))
def test_passages_hold_all_words_in_order(text: str, length: int) -> None:
    pieces = list(passages(text, length))
    assert "".join("".join(pieces).split()) == "".join(text.split())
    assert all(len(piece) <= length for piece in pieces)
