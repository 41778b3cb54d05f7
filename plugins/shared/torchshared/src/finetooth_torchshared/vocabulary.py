"""Room in a model for tokens that its tokenizer gained, for transformers models of torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from finetooth_hooks.errors import PlanError

PORTION = 4096
"""How many rows of an embedding are summed at once."""


def widen(model: Any, size: int, new: Sequence[int]) -> None:
    """Give a transformers model a row for every token, and the new ones the mean of those that were trained.

    A new row that is the mean of the old ones bounds how far the model's predictions move (Hewitt, 2021, "Initializing
    new word embeddings for pretrained language models"); rows drawn at random do not.

    Args:
        size: number of ids of the tokenizer; a model that has more rows keeps them.
        new: ids with untrained rows.

    Raises:
        PlanError: it is not a transformers model of torch.
    """
    if not hasattr(model, "resize_token_embeddings"):
        raise PlanError(
            "model.added_tokens: this backend's models cannot be given room for more tokens",
            action="remove the setting, or choose another backend",
        )
    rows = int(model.get_input_embeddings().weight.shape[0])
    if size > rows:
        # mean_resizing draws from torch's global random state
        model.resize_token_embeddings(size, mean_resizing=False)
    seen: set[int] = set()
    for end in (model.get_input_embeddings(), model.get_output_embeddings()):
        for parameter in () if end is None else (end.weight, getattr(end, "bias", None)):
            if parameter is not None and id(parameter) not in seen:
                seen.add(id(parameter))
                values = parameter.data  # outside of any graph
                values[list(new)] = _mean(values[: min(rows, size)], set(new)).to(values.dtype)


def _mean(rows: Any, new: set[int]) -> Any:
    """Mean of the rows that are not new, in float64: the same on every machine. Goes from portion to portion, since an
    embedding of a large model in float64 may not fit into memory as well."""
    total, count = 0.0, 0
    for begin in range(0, len(rows), PORTION):
        portion = rows[begin : begin + PORTION].clone().double()
        left_out = [id_ - begin for id_ in new if begin <= id_ < begin + len(portion)]
        portion[left_out] = 0
        total, count = total + portion.sum(0), count + len(portion) - len(left_out)
    return total / count
