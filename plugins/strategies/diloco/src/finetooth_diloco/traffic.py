"""What islands send, before a run."""

from __future__ import annotations

from finetooth_hooks.protocols import Traffic

from finetooth_diloco.options import DilocoOptions

BITS = {"fp32": 32, "bf16": 16, "fp16": 16, "int8": 8, "int4": 4}
"""Of a number."""
BLOCK = 256
"""Numbers that share a scale of four bytes in int8 and int4."""


def traffic(options: DilocoOptions, parameters: int, world: int) -> Traffic:
    """What a rank gives to those of other islands at an exchange.

    Args:
        parameters: numbers that train.
        world: ranks.
    """
    islands = world if options.num_islands == "auto" else options.num_islands
    integers = options.pseudo_gradient_dtype.startswith("int")

    def sent(numbers: int) -> int:
        scales = 4 * -(-numbers // BLOCK) if integers else 0
        return -(-numbers * BITS[options.pseudo_gradient_dtype] // 8) + scales

    return Traffic(
        every=options.inner_steps // options.fragments, sent=sent(-(-parameters // options.fragments)),
        peers=islands, summed=not integers, last=None if options.fragments == 1 else sent(parameters),
        what="how far islands moved", span=world,
    )  # fmt: skip
