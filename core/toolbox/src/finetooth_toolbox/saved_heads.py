"""Finds the scalar head of a saved model in its config."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from finetooth_hooks.compute.heads import ScalarHead

LABELS = {"sequence": 1, "token": 2}
"""Number of labels of a classifier that is a scalar head."""
_ENDINGS: Mapping[str, Literal["sequence", "token"]] = {
    "ForSequenceClassification": "sequence",
    "ForTokenClassification": "token",
}


def kind_of(name: str) -> Literal["sequence", "token"] | None:
    """The object that a class of this name classifies; None if it does not classify."""
    return next((kind for ending, kind in _ENDINGS.items() if name.endswith(ending)), None)


def head_of(config: Mapping[str, Any]) -> ScalarHead | None:
    """The scalar head of a saved model; None without one, or with another number of labels."""
    kind = kind_of(str((config.get("architectures") or [""])[0]))
    labels = len(config.get("id2label") or {0: "", 1: ""})
    if kind is None or labels != LABELS[kind]:
        return None
    return ScalarHead(bias=kind == "token", exported_as=kind)
