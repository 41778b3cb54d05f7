"""What of a model fits a machine, how long it takes there, and what published comparisons say of the quality.

The time is the operations by a speed that is stated.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from finetooth_hooks.compute.ways import Way, Ways

UTILISATION = 0.4
"""Share of what a device does at most that training reaches; 0.3 to 0.5 is usual (PaLM, Chowdhery et al., 2022,
arXiv:2204.02311, table 3, compares such figures)."""

ASSUMED_FLOPS = 50e12
"""FLOP/s that an accelerator of which only the memory is known is taken to sustain: a GPU of the middle class."""

QUALITY: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "whole": (
            "learns the most from the data; forgets the most of what the model knew",
            "Biderman et al., 2024, 2405.09673",
        ),
        "adapter": (
            "as good as full on small and medium data sets if it adapts all linear modules; worse where there is "
            "much new knowledge to learn (code, mathematics)",
            "Biderman et al., 2024, 2405.09673; Schulman et al., 2025, LoRA Without Regret",
        ),
        "8 bits": ("the base predicts as in 16 bits up to 175B", "Dettmers et al., 2022, 2208.07339"),
        "4 bits": (
            "on a par with 16 bits at 7B to 65B where levels follow a normal distribution; even ones lose more",
            "Dettmers et al., 2023, 2305.14314",
        ),
        "recomputed": ("the same results; takes about a third more time", "Chen et al., 2016, 1604.06174"),
        "elsewhere": (
            "the same results; the extra time depends on how fast the data come back",
            "Ren et al., 2021, 2101.06840; Rajbhandari et al., 2021, 2104.07857",
        ),
    }
)
"""What published comparisons say by kind of step, and where; numbers are of arXiv."""


@dataclass(frozen=True)
class Advice:
    """What of a model fits a machine.

    Attributes:
        of: the ways to train it there.
        rows: how many train.
        speed: FLOP/s that the times rest on.
        speed_from: what that rests on, as the end of a sentence.
    """

    of: Ways
    rows: int
    speed: float
    speed_from: str

    @property
    def taken(self) -> Way | None:
        """What `adapter: auto` and `quantization: auto` would take: the first that fits."""
        return next((way for way in self.of.ways if way.fits), None)

    def seconds(self, way: Way) -> float | None:
        """Of one pass over the rows; None where it is not known."""
        return None if way.flops is None else way.flops * self.rows / self.speed


def advise(of: Ways, *, rows: int, speed: float | None = None) -> Advice:
    """Estimate the time of every way.

    Args:
        speed: FLOP/s that training reaches; None: what the device does at most times `UTILISATION`, or
            `ASSUMED_FLOPS` where only its memory is known.
    """
    if speed is not None:
        return Advice(of, rows, speed, "as given with --tflops")
    if of.peak:
        why = f"{UTILISATION:.0%} of the device's {of.peak / 1e12:.3g} TFLOP/s"
        return Advice(of, rows, UTILISATION * of.peak, why)
    return Advice(of, rows, ASSUMED_FLOPS, "assumed: give what your device sustains with --tflops")


@dataclass(frozen=True)
class Spread:
    """What of a model fits several devices, each with a rank.

    Attributes:
        devices: how many.
        whole: the advice for one of them, which holds for strategies that leave each rank the whole model.
        copies: names of those strategies.
        sharded: the ways where a strategy divides the model, by its name; in the order of `whole.of.ways`.
        held: by the same names, what each device holds.
    """

    devices: int
    whole: Advice
    copies: tuple[str, ...]
    sharded: Mapping[str, Ways]
    held: Mapping[str, str]

    def ways(self, place: int) -> Mapping[str, Way]:
        """One way under every strategy, by the strategy's name."""
        copied = dict.fromkeys(self.copies, self.whole.of.ways[place])
        return copied | {name: ways.ways[place] for name, ways in self.sharded.items()}

    def seconds(self, place: int) -> float | None:
        """Of one pass over the rows where no rank waits for another; None where it is not known."""
        taken = self.whole.seconds(self.whole.of.ways[place])
        return None if taken is None else taken / self.devices

    @property
    def taken(self) -> tuple[str, str] | None:
        """The first way that fits, and the first strategy under which it does; None where nothing fits."""
        for place, way in enumerate(self.whole.of.ways):
            for name, under in self.ways(place).items():
                if under.fits:
                    return way.label, name
        return None
