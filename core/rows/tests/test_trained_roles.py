"""Trained tokens by role, against counting token by token."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from finetooth_hooks import Conversation, DataError, Message, Rendered
from finetooth_hooks.data.examples import Example
from finetooth_hooks.data.preparation import Limit
from finetooth_rows.preparing import render_rows
from finetooth_rows.tally import NO_MESSAGE, Tally
from hypothesis import given
from hypothesis import strategies as st

ROLES = ("system", "user", "assistant", "tool")
MESSAGES = st.lists(
    st.tuples(st.sampled_from(ROLES), st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=0, max_size=6)),
    min_size=1,
    max_size=5,
)
ROWS = st.lists(st.tuples(st.lists(st.sampled_from([0.0, 1.0]), max_size=3), MESSAGES), min_size=1, max_size=6)
LIMITS = st.builds(Limit, st.integers(1, 12), st.sampled_from(["drop", "truncate", "split"]))


def rows_of(given_rows: list[tuple[list[float], list[tuple[str, list[float]]]]]) -> tuple[list, dict]:
    """Conversations, and of each the tokens; the id of a token says which row, and whose it is."""
    items: list[tuple[str, Conversation]] = []
    rendered: dict[int, tuple[Rendered, list[str]]] = {}
    for number, (before, messages) in enumerate(given_rows):
        example = Conversation(tuple(Message(role, "x") for role, _ in messages))
        owners = [NO_MESSAGE] * len(before)
        weights = [*before]
        spans = []
        for role, own in messages:
            spans.append((len(weights), len(weights) + len(own)))
            weights += own
            owners += [role] * len(own)
        tokens = tuple(1000 * number + place for place in range(len(weights)))
        rendered[id(example)] = Rendered(tokens, tuple(weights), tuple(spans)), owners
        items.append((f"row {number}", example))
    return items, rendered


@given(ROWS, LIMITS | st.none())
def test_they_are_those_of_the_data(given_rows: list, limit: Limit | None) -> None:
    items, rendered = rows_of(given_rows)

    def render(example: Example) -> Rendered:
        return rendered[id(example)][0]

    portion, tally = render_rows(items, render, limit)
    expected: Counter[str] = Counter()
    for row in range(len(portion)):
        begin, end = portion.starts[row], portion.starts[row + 1]
        number = int(portion.tokens[begin]) // 1000
        whole, owners = rendered[id(items[number][1])]
        for token in portion.tokens[begin + 1 : end].tolist():  # the first is predicted by nothing in the datum
            place = token - 1000 * number
            expected[owners[place]] += whole.weights[place] != 0
    assert {role: count for role, count in tally.trained_by_role.items() if count} == {
        role: count for role, count in expected.items() if count
    }
    assert sum(tally.trained_by_role.values()) == tally.trained_tokens


def test_who_trains_nothing_is_named_and_rows_left_out_are_not() -> None:
    def render(example: Example) -> Rendered:
        assert isinstance(example, Conversation)
        if example.messages[0].content == "broken":
            raise DataError("", "broken")
        long = len(example.messages[0].content)
        return Rendered((1,) * (long + 2), (0.0,) * long + (1.0, 1.0), ((0, long), (long, long + 2)))

    def row(content: str) -> Conversation:
        return Conversation((Message("user", content), Message("assistant", "x")))

    rows = [("a", row("abc")), ("b", row("broken")), ("c", row("a" * 40)), ("d", row("ab"))]
    _, tally = render_rows(rows, render, Limit(10, "drop"))
    assert tally.trained_by_role == {"user": 0, "assistant": 4} and tally.trained_tokens == 4
    assert tally.report("train").trained_by_role == {"user": 0, "assistant": 4}


def test_a_renderer_that_does_not_tell_messages_apart() -> None:
    conversation = Conversation((Message("user", "x"), Message("assistant", "x")))
    _, tally = render_rows([("a", conversation)], lambda _: Rendered((1, 2, 3), (0.0, 1.0, 1.0), ((0, 3),)), None)
    assert tally.trained_by_role == {NO_MESSAGE: 2}


def test_counts_of_several_processes_add_up(tmp_path: Path) -> None:
    one, other = Tally(trained_by_role={"user": 0, "assistant": 3}), Tally(trained_by_role={"tool": 2, "assistant": 4})
    one.merge(Tally.from_json(other.as_json()))
    assert one.trained_by_role == {"user": 0, "assistant": 7, "tool": 2}
