"""Answers that train without their end are told, of every kind of row; scored texts and chosen parts are not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from finetooth_hooks import Conversation, DataError, Message, PromptCompletion, Rendered
from finetooth_hooks.data.examples import Example, Labelled, Pair, Segments, Stepwise, Task, Weighted
from finetooth_kit import ByteTokenizer, FakeContext
from finetooth_rows.noticing import ENDLESS, ENDLESS_EARLIER, ENDLESS_SEGMENT, ORPHAN, UNDECLARED, RowInspector
from finetooth_toolbox.messages.answers import scored_at_end
from finetooth_toolbox.messages.prompts import render_segments

ASK, SAY = Message("user", "Hello?"), Message("assistant", "Yes.")
CHAT = (ASK, SAY, ASK, SAY)
EOS = ByteTokenizer().eos_id
BACK = ByteTokenizer().encode("\n")[0]


@pytest.fixture
def noticing(tmp_path: Path) -> RowInspector:
    return RowInspector(FakeContext(tmp_path))


def turns(*answers: Sequence[int], spans: bool = True, weights: tuple[float, ...] | None = None) -> Rendered:
    """Questions of two tokens, and answers that train."""
    tokens: list[int] = []
    trained: list[float] = []
    ranges = []
    for answer in answers:
        for said, weight in (((70, 71), 0.0), (answer, 1.0)):
            ranges.append((len(tokens), len(tokens) + len(said)))
            tokens += said
            trained += [weight] * len(said)
    return Rendered(tuple(tokens), weights or tuple(trained), tuple(ranges) if spans else ())


@pytest.mark.parametrize(
    ("rendered", "told"),
    [
        (turns([72, EOS], [73, EOS]), ()),
        (turns([72, EOS, BACK], [73, EOS, BACK]), ()),  # a line feed trains with it
        (turns([72, EOS], [73]), (ENDLESS,)),
        (turns([72], [73, EOS]), (ENDLESS_EARLIER,)),
        (turns([72], [73]), (ENDLESS_EARLIER, ENDLESS)),
        (turns([EOS, 72], [73, EOS]), (ENDLESS_EARLIER,)),
        (turns([72], [73], spans=False), (ENDLESS,)),
        (turns([72], [73, EOS], spans=False), ()),  # where answers begin is not known: of the last the end is
        (turns([72], [73, EOS], weights=(0, 0, 0, 0, 0, 1, 1)), ()),
        (turns([72, EOS], [73, EOS], weights=(0, 0, 1, 0, 0, 0, 1, 1)), (ENDLESS_EARLIER,)),  # half of it trains
        # of GLM's markup the token that opens the next message ends the one before
        (Rendered((70, 72, EOS, 70, 73, EOS), (0, 1, 1, 0, 1, 1), ((0, 1), (1, 2), (2, 4), (4, 6))), ()),
    ],
)  # fmt: skip
def test_every_trained_turn_of_a_conversation(
    noticing: RowInspector, rendered: Rendered, told: tuple[str, ...]
) -> None:
    assert noticing.after(Conversation(CHAT), rendered) == told


def test_a_message_whose_parts_say_what_trains_is_not_told(noticing: RowInspector) -> None:
    part = Message("assistant", "Yes.", weights=(Weighted(0, 1, 1.0),))
    assert noticing.after(Conversation((ASK, part, ASK, SAY)), turns([72], [73, EOS])) == ()


GOOD, BAD = turns([72, EOS]), turns([72])
PAIR, LABELLED = Pair((ASK,), (SAY,), (SAY,)), Labelled((ASK,), (SAY,), True)


@pytest.mark.parametrize(
    ("example", "rendered", "told"),
    [
        (PAIR, Rendered(GOOD.tokens, GOOD.weights, GOOD.spans, others=(GOOD,)), ()),
        (PAIR, Rendered(GOOD.tokens, GOOD.weights, GOOD.spans, others=(BAD,)), (ENDLESS,)),
        (PAIR, Rendered(BAD.tokens, BAD.weights, BAD.spans, others=(GOOD,)), (ENDLESS,)),
        (PAIR, scored_at_end((70, 71, 72), others=(scored_at_end((70, 73)),)), ()),  # a reward model reads it
        (PAIR, Rendered((), (), left_out="both are the same"), ()),
        (LABELLED, GOOD, ()),
        (LABELLED, BAD, (ENDLESS,)),
        (LABELLED, scored_at_end((70, 71, 72)), ()),
        (Pair("Hello?", " Yes.", " No."), Rendered((70, 72, EOS), (0, 1, 1), others=(BAD,)), ()),  # ends by itself
        (PromptCompletion("Hello?", " Yes."), Rendered((70, 72, EOS), (0, 1, 1)), ()),
        (Task("Hello?"), Rendered((70,), (0,)), ()),
    ],
)
def test_other_kinds_of_rows(
    noticing: RowInspector, example: Example, rendered: Rendered, told: tuple[str, ...]
) -> None:
    assert noticing.after(example, rendered) == told


@pytest.mark.parametrize(
    ("pieces", "told"),
    [
        ((("Hello?", False), (" Yes.<|im_end|>", True)), ()),
        ((("Hello?", False), (" Yes.", True), ("<|im_end|>", False)), ()),  # the row says that it does not train
        ((("Hello?", False), (" Yes.", True)), (ENDLESS_SEGMENT,)),
        ((("Hello?", False), (" Yes.", False)), ()),
    ],
)
def test_segments(noticing: RowInspector, pieces: tuple[tuple[str, bool], ...], told: tuple[str, ...]) -> None:
    example = Segments(pieces)
    assert noticing.after(example, render_segments(example, ByteTokenizer())) == told


CALL = {"id": "a", "type": "function", "function": {"name": "clock", "arguments": {}}}
CALLS = Message("assistant", "", tool_calls=(CALL,))
OTHER = ({"type": "function", "function": {"name": "weather", "parameters": {}}},)
Kind = Callable[[tuple[Message, ...]], Example]
KINDS: list[Kind] = [
    lambda messages: Conversation((*messages, SAY), OTHER),
    lambda messages: Pair(messages, (SAY,), (SAY,), tools=OTHER),
    lambda messages: Labelled(messages, (SAY,), True, tools=OTHER),
    lambda messages: Task(messages, tools=OTHER),
]


@pytest.mark.parametrize("kind", KINDS)
def test_calls_of_tools_are_looked_at_in_every_kind(noticing: RowInspector, kind: Kind) -> None:
    good = (ASK, CALLS, Message("tool", "12", tool_call_id="a"))
    assert noticing.before(kind(good)) == (UNDECLARED,)
    assert noticing.before(kind((ASK, Message("tool", "12")))) == (ORPHAN,)
    with pytest.raises(DataError, match="'z', which no call has"):
        noticing.before(kind((ASK, CALLS, Message("tool", "12", tool_call_id="z"))))


def test_calls_before_steps_are_looked_at(noticing: RowInspector) -> None:
    steps = Stepwise((ASK, CALLS, Message("tool", "12", tool_call_id="z")), ("One.",), (True,))
    with pytest.raises(DataError, match="'z', which no call has"):
        noticing.before(steps)


MARKED = "<|im_start|>user\nHello?<|im_end|>"


@pytest.mark.parametrize(
    ("example", "noticed"),
    [
        (Stepwise("Hello?", ("One.", MARKED), (True, True)), True),
        (Stepwise(MARKED, ("One.",), (True,)), True),
        (Stepwise((ASK,), (MARKED,), (True,)), False),  # as in a message, it stays plain on purpose
        (Task(MARKED), True),
        (Task("Hello?"), False),
    ],
)
def test_markup_in_steps_and_tasks(noticing: RowInspector, example: Example, noticed: bool) -> None:
    assert any("<|im_" in told and "control tokens" in told for told in noticing.before(example)) == noticed
