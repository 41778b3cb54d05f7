"""Options of low-rank adapters that every framework has."""

from __future__ import annotations

from typing import Literal

from finetooth_hooks import Options
from pydantic import Field


class LowRankOptions(Options):
    """Options of all low-rank adapters (Hu et al., 2021, arXiv:2106.09685)."""

    rank: int = Field(default=32, ge=1, le=256)
    """Rank r of the low-rank update B A, 1 to 256."""
    alpha: float | None = Field(default=None, gt=0)
    """The update is scaled by alpha / rank (with `rslora` by alpha / sqrt(rank)). Default: 2 * rank, so that the scale
    is 2 at any rank; with `rslora` 16."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout on the input of A during training."""
    targets: Literal["all-linear", "attention"] | list[str] = "all-linear"
    """Modules to adapt: `all-linear` (every linear module of the decoder layers), `attention` (those inside
    attention), or a list of names that end a module's path (`q_proj`, `mlp.up_proj`) or regular expressions that
    match whole paths."""
    rslora: bool = False
    """Scale by alpha / sqrt(rank), so that high ranks learn as fast as low ones (Kalajdzievski, 2023,
    arXiv:2312.03732)."""

    @property
    def resolved_alpha(self) -> float:
        """`alpha`, or its default."""
        if self.alpha is not None:
            return self.alpha
        return 16.0 if self.rslora else 2.0 * self.rank
