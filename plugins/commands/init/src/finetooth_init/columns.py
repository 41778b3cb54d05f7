"""Which column asks and which one answers, where no format knows the names of a table's columns."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from finetooth_hooks import CommandContext, DataError, Row, UserError

ASKED = (
    "prompt", "question", "customer", "user", "human", "query", "input", "instruction", "request", "ask", "problem",
    "message", "ticket", "mail", "email", "subject", "source", "frage", "kunde", "pregunta", "domanda",
)  # fmt: skip
ANSWERED = (
    "completion", "answer", "agent", "assistant", "bot", "reply", "response", "output", "solution", "target", "support",
    "summary", "result", "translation", "antwort", "respuesta", "reponse", "risposta",
)  # fmt: skip
SHOWN_ROWS, SHOWN = 3, 60
"""Rows that are shown, and characters of a value."""


@dataclass(frozen=True)
class Columns:
    """What the options say of the columns; empty: nothing."""

    prompt: str = ""
    completion: str = ""
    system: str = ""

    @property
    def named(self) -> bool:
        """Whether a column is named."""
        return bool(self.prompt or self.completion)


@dataclass(frozen=True)
class Guess:
    """A pair of columns and why it is taken."""

    prompt: str
    completion: str
    reason: str


def texts_of(rows: Sequence[Row]) -> list[str]:
    """Names of the columns that hold text in the first rows."""
    names = dict.fromkeys(name for row in rows for name in row.values)
    return [n for n in names if any(isinstance(row.values.get(n), str) and row.values[n].strip() for row in rows)]


def guess(rows: Sequence[Row], named: Columns = Columns()) -> Guess | None:
    """The columns that ask and answer, by their names, or since there are just two; None if nothing tells.

    Args:
        named: a column that is named is taken.
    """
    texts = texts_of(rows)
    prompt = named.prompt or called_as(texts, ASKED, without=named.completion)
    completion = named.completion or called_as(texts, ANSWERED, without=prompt)
    if prompt and completion:
        return Guess(prompt, completion, f"by their names, {prompt!r} is the question and {completion!r} the answer")
    if len(texts) == 2:
        prompt = prompt or next(name for name in texts if name != completion)
        completion = next(name for name in texts if name != prompt)
        reason = f"of the two text columns, {prompt!r} is taken as the question and {completion!r} as the answer"
        if any(len(name.split()) > 2 or name.endswith((".", "?", "!")) for name in texts):
            reason += "; the first line names the columns: if it is a row, write prompt,completion above it"
        return Guess(prompt, completion, reason)
    return None


def called_as(columns: Sequence[str], names: Sequence[str], *, without: str = "") -> str:
    """The column with the most telling name; one of its words counts, so that `customer_text` is found."""
    left = [column for column in columns if column != without]
    words = {column: set(re.findall(r"[^\W\d_]+", _split(column).lower())) for column in left}
    return next((column for name in names for column in left if name in words[column]), "")


def _split(name: str) -> str:
    """`customerText` as `customer Text`."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)


def shown(rows: Sequence[Row]) -> str:
    """The rows in a few lines, a value a line."""
    lines = []
    for number, row in enumerate(rows, start=1):
        for name, value in row.values.items():
            text = " ".join(str(value).split())
            lines.append(f"  {number}  {name}: {text[:SHOWN]}{'...' if len(text) > SHOWN else ''}")
    return "\n".join(lines)


def format_of(
    rows: Sequence[Row], named: Columns, where: str, ask: Callable[[str, str], str] | None, say: Callable[[str], None]
) -> Mapping[str, Any]:
    """The format that reads the columns.

    Args:
        ask: asks a question with a proposal; None: nobody is there.
        say: tells a line.

    Raises:
        UserError: a column that is named is not there, or nothing tells which ones are meant.
    """
    names = list(dict.fromkeys(name for row in rows for name in row.values))
    for option, name in (("--prompt", named.prompt), ("--completion", named.completion)):
        if name and name not in names:
            raise UserError(f"{option} {name}: {where} has no such column", action=f"choose of {', '.join(names)}")
    best = guess(rows, named)
    system = named.system
    if ask is not None and not (named.prompt and named.completion):
        say(f"{where}: no format knows its columns by their names. Its first rows:\n{shown(rows)}")
        prompt = named.prompt or ask("Which column is the question?", best.prompt if best else names[0])
        completion = named.completion or ask("Which column is the answer?", best.completion if best else names[-1])
        system = system or ask("A system message for all rows? Empty: none", "")
        return format_of(rows, Columns(prompt, completion, system), where, None, say)
    if best is None:
        raise UserError(
            f"{where}: it is not clear which column holds the question and which one the answer. Its first "
            f"rows:\n{shown(rows)}\n",
            action="name them with --prompt COLUMN --completion COLUMN",
        )
    if not (named.prompt and named.completion):
        say(f"{where}: {best.reason}; --prompt and --completion change it")
        say(shown(rows))
    pick = {"name": "prompt_completion", "prompt": best.prompt, "completion": best.completion}
    return {**pick, "system": system} if system else pick


def readable(context: CommandContext, recipe: Mapping[str, Any], count: int) -> Any | None:
    """The first examples as the recipe reads them; None if no format knows their columns.

    Raises:
        DataError: anything else is wrong with them.
    """
    try:
        return context.context(recipe).examples("train", first=count)
    except DataError as error:
        if "no installed format" not in str(error):
            raise
        return None
