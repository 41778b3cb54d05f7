"""A row must fit into the micro-batch's token budget: it is refused, not computed alone beyond the budget."""

from __future__ import annotations

from collections.abc import Sequence

from finetooth_hooks import DataError, Datum


def check_rows(data: Sequence[Datum], budget: int) -> None:
    """Checks that every row fits into a micro-batch.

    Raises:
        DataError: a row has more positions than the budget; names the longest.
    """
    longest = max(data, key=len, default=None)
    if longest is not None and len(longest) > budget:
        raise DataError(
            longest.id or "a datum without id",
            f"{len(longest)} positions, more than train.micro_batch_tokens={budget} holds",
            action=f"raise train.micro_batch_tokens to at least {len(longest)}, or shorten the row",
        )
