"""What ranks send that divide the positions of rows, before a run."""

from __future__ import annotations

from finetooth_hooks.protocols import Foreseen, Traffic


def of_positions(run: Foreseen, ranks: int, *, span: int, heads: int = 1, gloo: bool = False) -> tuple[Traffic, ...]:
    """Keys and values, gathered in every layer of a pass and once more where the backward pass computes it again; and
    their gradients, of which each rank gets the sum for its positions.

    Args:
        ranks: that divide the positions.
        span: see `Traffic`.
        heads: ranks that divide the heads.
        gloo: it has no reduce-scatter, and sums everything at every rank.
    """
    layers = run.passes * run.layers
    whole = layers * run.positions * run.keys * run.size // heads
    gathers = (2 if run.recomputes else 1) + (0 if gloo else 1)
    gathered = Traffic(1, gathers * whole // ranks, ranks, False, None, gathers * layers, "keys and values", span)
    summed = Traffic(1, whole, ranks, calls=layers, what="gradients of keys and values", span=span)
    return (gathered, summed) if gloo else (gathered,)
