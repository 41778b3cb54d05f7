"""A weight in the order in which the kernel for few rows reads it: panels of outputs, input by input.

The last panel is half as wide where that holds its outputs. Of a narrow weight, such as a low-rank addition's, a panel
holds only the inputs between the first and the last that have a number other than zero: A and B of several modules that
share their rows are one matrix, most of whose B is zeros.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

import torch
from finetooth_kernels.memory import new_lasting
from torch import Tensor, nn

__all__ = ["PackedWeight", "pack_weight"]

NARROW = 512
"""Inputs up to which zeros are looked for."""
_UNITS = {2: torch.int16, 4: torch.int32}
"""By bytes."""


@dataclass(frozen=True)
class _Panels:
    """Panels next to each other that are alike: the first output, how many panels, how wide each is, and which units of
    inputs they hold."""

    first: int
    count: int
    width: int
    start: int
    stop: int

    @property
    def end(self) -> int:
        return self.first + self.count * self.width

    @property
    def size(self) -> int:
        return self.count * self.width * (self.stop - self.start)


@dataclass(frozen=True, eq=False)
class PackedWeight:
    """Made by `pack_weight`.

    Attributes:
        numbers: panel behind panel.
        inputs, outputs: of the weight.
        parts: (panels, 3) int64: where a panel begins in `numbers`, and its inputs from where up to where; None where
            every panel holds all.
        panels, unit: what `numbers` is made of.
    """

    numbers: Tensor
    inputs: int
    outputs: int
    parts: Tensor | None
    panels: tuple[_Panels, ...]
    unit: torch.dtype

    def unpacked(self) -> Tensor:
        """(O, D), made again."""
        packed = self.numbers.view(self.unit)
        units = self.inputs * self.numbers.element_size() // self.unit.itemsize
        whole = packed.new_zeros((self.panels[-1].end, units))
        for at, group in _placed(self.panels):
            _cut(whole, group).copy_(packed[at : at + group.size].view(group.count, -1, group.width))
        return whole.view(self.numbers.dtype)[: self.outputs]


def pack_weight(weight_od: Tensor, panel: int, least: int, together: int) -> PackedWeight:
    """Pack (O, D); O is not 0, and D a multiple of `together`.

    Args:
        panel, least, together: see `Library.few_rows_layout`.
    """
    outputs, inputs = weight_od.shape
    rest = outputs % panel
    missing = ((least if rest <= least else panel) - rest) if rest else 0
    whole = nn.functional.pad(weight_od.detach(), (0, 0, 0, missing)) if missing else weight_od.detach()
    # inputs that stand together are one number: torch transposes those faster than axes of two
    whole = whole.clone() if whole.storage_offset() % together else whole
    unit = _UNITS[together * weight_od.element_size()]
    units = whole.view(unit)
    panels = [_Panels(0, outputs // panel, panel, 0, units.shape[1])] if outputs >= panel else []
    if rest:
        panels.append(_Panels(outputs - rest, 1, rest + missing, 0, units.shape[1]))
    parts = None
    if least < panel and inputs <= NARROW:
        trimmed = [part for group in panels for part in _trimmed(units, group)]
        if sum(group.size for group in trimmed) < units.numel():
            panels, parts = trimmed, _parts(trimmed, together)
    packed = new_lasting(units, (max(1, sum(group.size for group in panels)),))
    for at, group in _placed(panels):
        packed[at : at + group.size].view(group.count, -1, group.width).copy_(_cut(units, group))
    return PackedWeight(packed.view(weight_od.dtype), inputs, outputs, parts, tuple(panels), unit)


def _cut(units_od: Tensor, group: _Panels) -> Tensor:
    """(panels, inputs, outputs of a panel) of a group."""
    rows = units_od[group.first : group.end, group.start : group.stop]
    return rows.view(group.count, group.width, -1).transpose(1, 2)


def _placed(panels: tuple[_Panels, ...] | list[_Panels]) -> Iterator[tuple[int, _Panels]]:
    """Groups that hold anything, and where they begin."""
    at = 0
    for group in panels:
        if group.size:
            yield at, group
        at += group.size


def _trimmed(units_od: Tensor, group: _Panels) -> Iterator[_Panels]:
    """The group without inputs that are zeros at both ends of all its outputs, panel by panel."""
    used = (_cut(units_od, group) != 0).any(-1)
    has_used = used.any(-1)
    starts = used.int().argmax(-1) * has_used
    stops = (used.shape[1] - used.flip(-1).int().argmax(-1)) * has_used
    first = group.first
    for (start, stop), alike in groupby(zip(starts.tolist(), stops.tolist(), strict=True)):
        count = len(list(alike))
        yield _Panels(first, count, group.width, start, stop)
        first += count * group.width


def _parts(panels: list[_Panels], together: int) -> Tensor:
    spans, at = [], 0
    for group in panels:
        for _ in range(group.count):
            spans.append((together * at, together * group.start, together * group.stop))
            at += group.width * (group.stop - group.start)
    return torch.tensor(spans, dtype=torch.int64)
