"""What a context remembers of how rows became tokens, so that they can be shown and counted as they train."""

from __future__ import annotations

from dataclasses import dataclass

from finetooth_hooks.preparation import Limit, Rendering


@dataclass(frozen=True)
class PreparedAs:
    """How rows of a split become tokens.

    Attributes:
        rendering, limit, first: see `Context.prepare`.
        streamed: they do so while the run trains; nothing is read ahead.
    """

    rendering: Rendering
    limit: Limit | None
    first: int | None = None
    streamed: bool = False
