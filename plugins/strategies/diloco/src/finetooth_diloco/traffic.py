"""What islands send, before a run."""

from __future__ import annotations

from finetooth_hooks.protocols import Traffic

from finetooth_diloco.options import DilocoOptions

SIZES = {"fp32": 4, "bf16": 2, "fp16": 2, "int8": 1}
"""Bytes of a number."""
BLOCK = 256
"""Numbers that share a scale of four bytes in int8."""


def traffic(options: DilocoOptions, parameters: int, world: int) -> Traffic:
    """What a rank gives to those of other islands at an exchange.

    Args:
        parameters: numbers that train.
        world: ranks.
    """
    islands = world if options.num_islands == "auto" else options.num_islands
    scales = 4 * -(-parameters // BLOCK) if options.pseudo_gradient_dtype == "int8" else 0
    size, whole = SIZES[options.pseudo_gradient_dtype], options.fragments == 1
    return Traffic(
        every=options.inner_steps // options.fragments, sent=-(-parameters // options.fragments) * size + scales,
        peers=islands, summed=options.pseudo_gradient_dtype != "int8", last=None if whole else parameters * size,
    )  # fmt: skip
