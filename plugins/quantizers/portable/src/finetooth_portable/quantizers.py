"""What the quantizers take and what they say of it. torch is imported when a module is stored."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from finetooth_hooks import Context, Options, QuantizerBase
from finetooth_hooks.protocols import Stored

if TYPE_CHECKING:
    from finetooth_portable.modules import Form

SCALE = 2
"""Bytes of a scale or a minimum, which are bf16: a group of tiny weights is stored as well as one of large ones."""
MX_BLOCK = 32
"""Weights that share a scale in an MX format."""


class StoringOptions(Options):
    """What all have."""

    skip: list[str] = []  # noqa: RUF012 - pydantic copies it
    """Modules that stay as they are, by names that end their paths: `[down_proj]`."""


class Int8Options(StoringOptions):
    """Options of `int8`."""

    group: Literal[32, 64, 128, 256] = 64
    """Number of consecutive weights of an output that share a scale."""


class Int4Options(StoringOptions):
    """Options of `int4`."""

    group: Literal[32, 64, 128] = 32
    """Number of consecutive weights of an output that share a scale."""
    symmetric: bool = False
    """Whether the 16 levels are symmetric, so that 0 is one of them and a group needs only a scale. Otherwise the
    levels reach from the group's smallest weight to its largest, which needs a second number and is more exact."""


class HqqOptions(StoringOptions):
    """Options of `hqq`."""

    group: Literal[32, 64, 128] = 64
    """Number of consecutive weights of an output that share a scale and a minimum."""


class Mxfp4Options(StoringOptions):
    """Options of `mxfp4`."""


class Portable(QuantizerBase):
    """`protocols.Quantizer` of all formats here.

    Args:
        stored: what it makes of a weight. A last group that is not full is stored as a full one.
        group: weights that share a scale.
        form: the name of the module's class in `finetooth_portable.modules`.
        skip: ends of paths that stay as they are.
    """

    def __init__(self, stored: Stored, group: int, form: Form, skip: list[str]) -> None:
        self.stored, self._group, self._form, self.skip = stored, group, form, tuple(skip)

    def takes(self, path: str, shape: tuple[int, int]) -> bool:
        """See `protocols.Quantizer`."""
        del shape
        return not path.endswith(self.skip) if self.skip else True

    def linear(self, module: Any, *, device: str) -> Any:
        """See `protocols.Quantizer`."""
        from finetooth_portable.modules import FORMS

        return FORMS[self._form](module, self._group).to(device)


def build_int8(options: Int8Options, context: Context) -> Portable:
    """q = round(w / s) in -127..127 with s = max|w| / 127 of a group."""
    del context
    stored = Stored(f"int8 by groups of {options.group}", 1 + SCALE / options.group)
    return Portable(stored, options.group, "int8", options.skip)


def build_int4(options: Int4Options, context: Context) -> Portable:
    """Symmetric: q = round(w / s) in -8..7, where s makes the weight of greatest magnitude -8. Otherwise q =
    round((w - m) / s) in 0..15 with m = min w and s = (max w - m) / 15."""
    del context
    numbers = 1 if options.symmetric else 2
    named = f"{'symmetric ' if options.symmetric else ''}int4 by groups of {options.group}"
    stored = Stored(named, 0.5 + numbers * SCALE / options.group)
    return Portable(stored, options.group, "int4_symmetric" if options.symmetric else "int4", options.skip)


def build_hqq(options: HqqOptions) -> Portable:
    """As `int4`, with m chosen by half-quadratic splitting; see `modules.HqqLinear`."""
    stored = Stored(f"hqq of 4 bits by groups of {options.group}", 0.5 + 2 * SCALE / options.group)
    return Portable(stored, options.group, "hqq", options.skip)


def build_mxfp4(options: Mxfp4Options, context: Context) -> Portable:
    """MXFP4 of the OCP Microscaling Formats (MX) Specification, version 1.0, sections 5.3 and 6.3."""
    del context
    return Portable(Stored("mxfp4", 0.5 + 1 / MX_BLOCK), MX_BLOCK, "mxfp4", options.skip)
