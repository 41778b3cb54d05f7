"""Finds the part to name if the decoder or the head does not agree with the model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from finetooth_hooks import PlanError
from finetooth_kernels.decoder import FindLowRank
from finetooth_toolbox import blame

from finetooth_torch.compute import TORCH, Compute

HEAD = ("linear_logprob",)
"""The head's operations; the decoder's are `compute.STREAM`."""

Agrees = Callable[[Compute], bool]


def wrong_kernel(agrees: Agrees, compute: Compute, operations: Sequence[str], problem: str) -> PlanError | None:
    """The error that names the one operation without which everything agrees, else all picked ones.

    None if torch's own do not agree either.

    Args:
        agrees: whether the model and our computation agree with the given operations; it may raise.
        operations: that were used.
        problem: the difference, or the error.
    """
    picked = [name for name in operations if name in compute.providers]
    for suspects in (*([name] for name in picked), picked):
        torchs = {name: getattr(TORCH, name) for name in suspects}
        try:
            mended = agrees(replace(compute, **torchs))
        except Exception:
            continue
        if mended and suspects:
            named = " or ".join(f"kernels.{name}={compute.providers[name]}" for name in suspects)
            places = [blame.place_of(getattr(compute, name)) for name in suspects]
            where = f" [{', '.join(filter(None, places))}]" if any(places) else ""
            settings = ", ".join(f"kernels.{name} to torch" for name in suspects)
            return PlanError(
                f"{named}: {problem}; with torch's way of it everything agrees{where}",
                action=f"set {settings}, or fix what computes it",
            )
    return None


def wrong_low_rank(low_rank: FindLowRank, problem: str) -> PlanError:
    """The error for an adapter, if everything agrees without its low-rank matrices."""
    return PlanError(
        f"{blame.whose(low_rank)}adapter: low_rank() does not give what its modules compute: {problem}; where they are "
        f"called as they are, everything agrees{blame.where(low_rank)}",
        action="set backend.decoder: transformers, or fix low_rank()",
    )


def broken_part(error: BaseException, compute: Compute) -> PlanError | None:
    """The error that names the plugin that raised; None if that is this backend or the decoder's plugin."""
    culprit = blame.blamed(error)
    ours = {blame.owner_of(broken_part), blame.owner_of(compute.stream_decoder)}
    if culprit is None or culprit.plugin in ours:
        return None
    problem, action = blame.problem(error)
    return PlanError(problem, action=action)
