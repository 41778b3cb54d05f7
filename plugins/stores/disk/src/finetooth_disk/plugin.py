"""Store `disk`: checkpoints as folders in a folder."""

from __future__ import annotations

from collections.abc import Iterator

from finetooth_hooks import Claim, Store, hookimpl


def claims(place: str) -> Claim | None:
    """Paths are its own: what begins with `/`, `./`, `../`, `~` or `file://`, or has a slash and no scheme."""
    if place.startswith("file://"):
        return Claim(2, "a folder (file://)")
    if place.startswith(("/", "~")) or place in (".", "..") or ("/" in place and "://" not in place):
        return Claim(1, "a path")
    return None


@hookimpl
def ft_stores() -> Iterator[Store]:
    """The store of the tier `disk`."""
    yield Store(
        name="disk",
        build="finetooth_disk.store:build",
        tier="disk",
        summary="folders in the run folder; each is either complete or absent",
        claims=claims,
        default=True,
        example={"path": "{folder}/kept"},
    )
