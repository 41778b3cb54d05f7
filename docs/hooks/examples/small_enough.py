"""A release gate: a version passes if its files take no more room than the version in the channel, and a tenth."""

from __future__ import annotations

from collections.abc import Iterator

from finetooth_hooks import Options, ReleaseGate, ReleaseVersion, Verdict, hookimpl


@hookimpl
def ft_release_gates() -> Iterator[ReleaseGate]:
    yield ReleaseGate(name="small_enough", build=f"{__name__}:SmallEnough", summary="files have not grown")


class SmallEnoughOptions(Options):
    """Options of `small_enough`."""

    growth: float = 0.1
    """How much larger than its predecessor a version may be, as a share."""


def size(version: ReleaseVersion) -> int:
    """Bytes of all files."""
    return sum(file.stat().st_size for file in version.folder.rglob("*") if file.is_file())


class SmallEnough:
    """Compares sizes; the first version of a channel passes. Made for each decision, with the options of the
    registry's policy."""

    def __init__(self, options: SmallEnoughOptions) -> None:
        self.growth = options.growth

    def judge(self, candidate: ReleaseVersion, predecessor: ReleaseVersion | None) -> Verdict:
        new = size(candidate)
        if predecessor is None:
            return Verdict(True, f"{new:,} bytes, and no predecessor", {"bytes": new})
        old = size(predecessor)
        passed = new <= old * (1 + self.growth)
        return Verdict(passed, f"{new:,} bytes after {old:,}", {"bytes": new, "before": old})
