"""Turns before the question in a column of their own: a list of pairs of question and answer."""

from __future__ import annotations

from finetooth_hooks import DataError, Message, Row

from finetooth_formats import columns
from finetooth_formats.columns import kind


def read_history(row: Row, column: str) -> tuple[Message, ...]:
    """Questions and answers as messages of the user and the assistant; none if the row lacks the column.

    Args:
        column: holds `[["question", "answer"], ...]`; empty reads none.

    Raises:
        DataError: it holds something else; names the path.
    """
    pairs = columns.value(row.values, column) if column else None
    if pairs is None or pairs == "":
        return ()
    if not isinstance(pairs, list | tuple):
        raise _wrong(row, f"{column} is {kind(pairs)}, not a list of pairs")
    messages = []
    for i, pair in enumerate(pairs):
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            what = f"a list of {len(pair)}" if isinstance(pair, list | tuple) else kind(pair)
            raise _wrong(row, f"{column}[{i}] is {what}, not a question and its answer")
        for k, (role, text) in enumerate(zip(("user", "assistant"), pair, strict=True)):
            if not isinstance(text, str) or not text:
                raise _wrong(row, f"{column}[{i}][{k}] is {'empty' if text == '' else f'{kind(text)}, not text'}")
            if role == "assistant" and not text.strip():
                raise _wrong(row, f"{column}[{i}][{k}] is nothing but blanks")
            if problem := columns.unspeakable(text):
                raise _wrong(row, f"{column}[{i}][{k}] {problem}")
            messages.append(Message(role, text))
    return tuple(messages)


def _wrong(row: Row, problem: str) -> DataError:
    return DataError(row.id, problem, action='write [["question", "answer"], ...], or remove the column')
