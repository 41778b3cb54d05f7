"""Store `s3`: checkpoints in S3-compatible object storage."""

from __future__ import annotations

from collections.abc import Iterator

from finetooth_hooks import Claim, Store, hookimpl


def claims(place: str) -> Claim | None:
    """Addresses that begin with `s3://` are its own."""
    return Claim(2, "object storage (s3://)") if place.lower().startswith("s3://") else None


@hookimpl
def ft_stores() -> Iterator[Store]:
    """The store of the tier `remote`."""
    yield Store(
        name="s3",
        build="finetooth_objects.store:build",
        tier="remote",
        summary="S3-compatible object storage; verifies every upload, and resumes an interrupted one",
        claims=claims,
    )
