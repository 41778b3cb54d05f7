"""Checks of sources, formats and rewards."""

from __future__ import annotations

import asyncio
import inspect
import math
from collections.abc import Mapping
from typing import Any, get_args

from finetooth_hooks.claims import Claim
from finetooth_hooks.data.examples import ROLES, Conversation, Example, Row, examples_in
from finetooth_hooks.entries import Format, Loader, Source
from finetooth_hooks.errors import DataError, FinetoothError

from finetooth_kit.checks import CheckSkipped, EntryCase, check_for, expect, expect_instance, fail

_FOREIGN = ("", "no-such-thing", "./nothing here.xyz", "/", "org/name", "https://example.org/a?b=c")


@check_for("source", "loader")
def claims_never_raises(case: EntryCase) -> None:
    """`claims` answers any text with None or a Claim of strength 1 or 2 with a reason."""
    assert isinstance(case.entry, Source | Loader)
    if case.entry.claims is None:
        return
    for reference in _FOREIGN:
        claim = case.entry.claims(reference)
        called = f"claims({reference!r})"
        expect_instance(claim, (Claim, type(None)), called)
        if claim is not None:
            expect(claim.strength in (1, 2), called, f"strength {claim.strength}", "1 or 2")
            expect(claim.reason, called, "no reason", "words for the plan")
    expect(case.entry.claims("") is None, "claims('')", case.entry.claims(""), "None: nothing is nobody's")


@check_for("source")
def rows_repeat_with_unique_ids(case: EntryCase) -> None:
    """Two builds yield the same rows in the same order: `Row`s with ids that are unique and columns by name."""
    first, second = (list(case.build().rows()) for _ in range(2))
    expect(first, "list(rows())", "no row", "at least one, or a DataError")
    for row in first:
        expect_instance(row, Row, "rows()")
        expect(isinstance(row.values, Mapping) and row.id, "rows()", row, "an id, and columns by name")
    ids = [row.id for row in first]
    expect(len(set(ids)) == len(ids), "ids of rows()", "some twice", "unique ids")
    expect(first == second, "rows() of a second build", "other rows", "the same rows in the same order")


@check_for("format")
def foreign_rows_are_not_detected(case: EntryCase) -> None:
    """A row without any known column is not of the format; reading it is a DataError that names the row."""
    built = case.build()
    for values in ({}, {"zzz_unknown": 3}):
        reason = built.detect(values)
        expect(reason is None, f"detect({values})", repr(reason), "None")
        try:
            read = built.read(Row("check.jsonl:17", values))
        except DataError as error:
            expect("check.jsonl:17" in str(error), f"read({values})", error, "a DataError that names the row")
        else:
            fail(f"read({values})", read, "a DataError that names the row")


@check_for("format")
def example_rows_are_read(case: EntryCase) -> None:
    """The entry's `example_rows` are detected, with words for the plan, and read to examples."""
    assert isinstance(case.entry, Format)
    if not case.entry.example_rows:
        raise CheckSkipped("the entry gives no example_rows")
    built = case.build()
    for values in case.entry.example_rows:
        reason = built.detect(values)
        expect(isinstance(reason, str) and reason, f"detect({values})", repr(reason), "why it is of the format")
        read = built.read(Row("check.jsonl:1", values))
        expect(read == built.read(Row("check.jsonl:1", values)), "read, a second time", "another example", "the same")
        for example in examples_in(read):
            expect_instance(example, get_args(Example), f"read({values})")
            if isinstance(example, Conversation):
                roles = [message.role for message in example.messages]
                expect(roles and set(roles) <= set(ROLES), f"roles of read({values})", roles, f"of {ROLES}")


class _Columns(dict[str, Any]):
    """Any column, as long as the completions."""

    def __missing__(self, name: str) -> list[str]:
        return ["4", "4", ""]


def _sampled(count: int) -> dict[str, list[Any]]:
    """The columns of so many rollouts (`SAMPLED_COLUMNS`)."""
    lengths = (1, 3, 0)[:count]
    columns: dict[str, list[Any]] = {
        "row_id": [f"rows.jsonl:{i + 1}" for i in range(count)],
        "conversation": [None] * count,
        "completion_ids": [list(range(length)) for length in lengths],
        "outcome": ["stop"] * count,
        "version": [0] * count,
    }
    return columns


def _awaiting(reward: Any) -> Any:
    """The reward as a plain function; one with an `async def` call is awaited, as in a run."""

    async def wait(scores: Any) -> Any:
        return await scores

    def scored(*arguments: Any) -> Any:
        scores = reward(*arguments)
        return asyncio.run(wait(scores)) if inspect.isawaitable(scores) else scores

    return scored


@check_for("reward")
def scores_are_numbers_or_none(case: EntryCase) -> None:
    """One score a completion, finite or None, the same a second time, and none for no completion."""
    reward = _awaiting(case.build())
    prompts = ["What is 2 plus 2?", "What is 1 plus 3?", "Say nothing."]
    completions = ["4", "It is five.", ""]
    columns = _Columns(answer=["4", "4", ""], **_sampled(3))
    scores = reward(prompts, completions, columns)
    called = "reward(3 prompts, 3 completions, columns)"
    expect(isinstance(scores, list) and len(scores) == 3, called, scores, "a list of 3")
    for score in scores:
        number = isinstance(score, float | int) and math.isfinite(score)
        expect(score is None or number, called, scores, "finite numbers, or None")
    again = reward(prompts, completions, columns)
    expect(again == scores, "the same call again", again, f"{scores}")
    empty = reward([], [], _Columns(answer=[], **_sampled(0)))
    expect(empty == [], "reward([], [], ...)", empty, "[]")
    alone = [
        reward([prompts[i]], [completions[i]], {name: [values[i]] for name, values in columns.items()})[0]
        for i in range(len(prompts))
    ]
    expect(alone == scores, "reward of one completion at a time", alone, f"{scores}, as together")


@check_for("reward")
def needed_columns_are_needed(case: EntryCase) -> None:
    """Without a column that `needed_columns` names a reward raises an error for the user."""
    reward = case.build()
    scored = _awaiting(reward)
    for name in getattr(reward, "needed_columns", ()):
        columns = {key: values for key, values in {"answer": ["4"], **_sampled(1)}.items() if key != name}
        try:
            scores = scored(["What is 2 plus 2?"], ["4"], columns)
        except FinetoothError:
            continue
        fail(f"reward(1 prompt, 1 completion, columns without {name!r})", scores, "a FinetoothError")
