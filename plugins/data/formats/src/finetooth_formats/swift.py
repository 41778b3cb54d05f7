"""Pairs as ms-swift lays them out: an answer in its place, and the rejected one in `rejected_response`.

Source: ms-swift's guide to custom datasets (rows for RLHF).
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Mapping
from typing import Any

from finetooth_formats import columns

REJECTED = "rejected_response"
QUERY, RESPONSE, HISTORY = "query", "response", "history"


def as_pair(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """The row with the columns `prompt`, `chosen` and `rejected`; as it is if it is not of this kind.

    The answer is `response` to `query`, after the turns of `history`, or else the last of `messages`.
    """
    if not columns.present(values, REJECTED) or columns.present(values, "chosen"):
        return values
    messages = values.get("messages")
    if columns.present(values, QUERY, RESPONSE):
        prompt, answer = values[QUERY], values[RESPONSE]
        if turns := values.get(HISTORY):
            texts = [text for pair in turns for text in pair]
            roles = ("user", "assistant") * len(turns)
            before = [{"role": role, "content": text} for role, text in zip(roles, texts, strict=False)]
            prompt = [*before, {"role": "user", "content": prompt}]
    elif isinstance(messages, list | tuple) and len(messages) > 1:
        prompt, answer = list(messages[:-1]), [messages[-1]]
    else:
        return values
    return ChainMap({"prompt": prompt, "chosen": answer, "rejected": values[REJECTED]}, values)  # type: ignore[arg-type]
