"""The worker's side of the reward: the task's own `score_answer`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

TUPLE = "__tuple__"


def as_json(value: Any) -> Any:
    """Data as JSON; tuples, which some tasks compare with, stay distinct from lists."""
    if isinstance(value, tuple):
        return {TUPLE: [as_json(element) for element in value]}
    if isinstance(value, list):
        return [as_json(element) for element in value]
    if isinstance(value, Mapping):
        return {str(key): as_json(member) for key, member in value.items()}
    return value


def from_json(value: Any) -> Any:
    """Undo `as_json`."""
    if isinstance(value, list):
        return [from_json(element) for element in value]
    if isinstance(value, dict):
        if set(value) == {TUPLE}:
            return tuple(from_json(element) for element in value[TUPLE])
        return {key: from_json(member) for key, member in value.items()}
    return value


def serve() -> Callable[[Mapping[str, Any]], float]:
    """The worker's function for each `{"task", "said", "entry"}`."""
    import reasoning_gym

    scorer = lru_cache(maxsize=None)(reasoning_gym.get_score_answer_fn)

    def score(request: Mapping[str, Any]) -> float:
        return float(scorer(request["task"])(request["said"], from_json(request["entry"])))

    return score
