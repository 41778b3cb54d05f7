"""A few examples of each kind that methods and evaluators take."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from finetooth_hooks.data.examples import Example, Labelled, Message, Pair, Stepwise, Task, Text
from finetooth_hooks.errors import DataError
from finetooth_hooks.protocols import Examples

from finetooth_kit.fake_context import FakeContext, conversations


def _examples(split: str, rows: Sequence[Example]) -> Examples:
    named = tuple((f"{split}:{i}", row) for i, row in enumerate(rows))
    return Examples(split, named, format="made by the kit", source="made by the kit")


def texts(split: str) -> Examples:
    """Documents."""
    return _examples(split, [Text(f"Document {i} says {i * i}. " * (i + 1)) for i in range(10)])


def _sides(i: int) -> tuple[tuple[Message, ...], tuple[Message, ...], tuple[Message, ...]]:
    texts = (
        ("user", f"What is {i} plus {i % 7}?"),
        ("assistant", f"{i + i % 7}"),
        ("assistant", "Who knows" + "?" * i),
    )
    prompt, good, bad = ((Message(role, text),) for role, text in texts)
    return prompt, good, bad


def pairs(split: str) -> Examples:
    """A right and a wrong answer to each question."""
    return _examples(split, [Pair(*_sides(i), margin=1.0) for i in range(10)])


def labelled(split: str) -> Examples:
    """Answers that are right or wrong."""
    return _examples(split, [Labelled(_sides(i)[0], _sides(i)[1 + i % 2], i % 2 == 0) for i in range(10)])


def stepwise(split: str) -> Examples:
    """Answers in two steps, of which the second is sometimes wrong."""
    rows = [
        Stepwise((Message("user", f"{i}+2?"),), (f"{i}+1={i + 1}", f"so {i + 2 + i % 2}"), (True, i % 2 == 0))
        for i in range(10)
    ]
    return _examples(split, rows)


def tasks(split: str) -> Examples:
    """Questions that the model answers itself, with the right answers for rewards."""
    rows = [Task(_sides(i)[0], {"answer": f"{i + i % 7}"}) for i in range(10)]
    return _examples(split, rows)


KINDS: tuple[Callable[[str], Examples], ...] = (conversations, texts, pairs, labelled, stepwise, tasks)


def prepared_on_any(make: Callable[[], tuple[FakeContext, Any]]) -> tuple[FakeContext, Any, Any]:
    """Context, what was built in it, and what its `prepare()` gave, on the first kind of rows that it takes.

    Args:
        make: a fresh context, and what is built in it.

    Raises:
        DataError: it takes none of them; what it says of the first kind.
    """
    refused: list[DataError] = []
    for kind in KINDS:
        context, built = make()
        context.given = {split: kind(split) for split in ("train", "eval")}
        try:
            return context, built, built.prepare()
        except DataError as error:
            refused.append(error)
    raise refused[0]
