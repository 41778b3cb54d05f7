"""Whether the calls and results of a conversation belong together.

What contradicts itself is refused: which call a result answers would be a guess. What may be meant so (a result whose
call stands in plain text, a call of a tool that the model knows from elsewhere) is told.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from finetooth_hooks.errors import DataError
from finetooth_hooks.examples import Message
from finetooth_toolbox.text.column_names import repeated

ORPHAN = "a tool's result follows no call"
TWICE = "two results answer one call"
SHUFFLED = "results stand in another order than the calls that they answer, and most markups tell them by their place"
UNNAMED = "a result names a tool that was not called"
UNDECLARED = "a call is of a function that is not among the row's tools"


def check_links(messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = ()) -> tuple[str, ...]:
    """What there is to tell of a conversation's calls and results, in words that are the same for all such rows.

    Args:
        tools: schemas, of functions with or without the level `function`.

    Raises:
        DataError: two calls of a message have one id, or a result names an id that no call before it has.
    """
    remarks: dict[str, None] = {}
    declared = {name for tool in tools if (name := _function(tool).get("name"))}
    known: set[str] = set()
    calls: Sequence[Mapping[str, Any]] = ()
    results: list[Message] = []
    for i, message in enumerate(messages):
        if message.role == "tool":
            results.append(message)
            remarks |= dict.fromkeys(_of_result(f"messages[{i}]", results, calls, known))
            continue
        calls, results = message.tool_calls, []
        ids = [str(call["id"]) for call in calls if call.get("id")]
        if twice := repeated(ids):
            raise DataError(f"messages[{i}]", f"two of its calls have the id {twice!r}", action="give each its own")
        known.update(ids)
        if declared and any(_function(call).get("name") not in declared for call in calls):
            remarks[UNDECLARED] = None
    return tuple(remarks)


def _of_result(
    where: str, results: Sequence[Message], calls: Sequence[Mapping[str, Any]], known: set[str]
) -> tuple[str, ...]:
    """What there is to tell of the last result since the calls.

    Raises:
        DataError: no call has its id.
    """
    place, result = len(results) - 1, results[-1]
    ids = [str(call.get("id") or "") for call in calls]
    own = result.tool_call_id
    if own and any(known) and own not in known:
        listed = ", ".join(map(repr, filter(None, ids))) or "none"
        raise DataError(
            f"{where}.tool_call_id", f"it is {own!r}, which no call has; those before it are {listed}",
            action="give the result the id of its call",
        )  # fmt: skip
    if place >= len(calls):
        return (ORPHAN,)
    if own and own in (other.tool_call_id for other in results[:-1]):
        return (TWICE,)
    if own and ids[place] and ids[place] != own:
        return (SHUFFLED,)
    names = {_function(call).get("name") for call in calls}
    return (UNNAMED,) if result.name and result.name not in names else ()


def _function(value: Mapping[str, Any]) -> Mapping[str, Any]:
    inner = value.get("function", value)
    return inner if isinstance(inner, Mapping) else {}
