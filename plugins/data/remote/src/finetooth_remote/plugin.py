"""The source `remote`: files of rows on other machines."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType

from finetooth_hooks import Claim, Source, hookimpl

SCHEMES: Mapping[str, str] = MappingProxyType(
    {"https": "http", "http": "http", "s3": "s3", "gs": "gcs", "gcs": "gcs", "az": "azure", "abfs": "azure"}
)
"""Beginnings of addresses, and the extra of this distribution that each needs."""


def claims(reference: str) -> Claim | None:
    """Addresses are its own, by how they begin."""
    scheme = reference.partition("://")[0].lower() if "://" in reference else ""
    return Claim(2, f"an address ({scheme}://)") if scheme in SCHEMES else None


@hookimpl
def ft_sources() -> Iterator[Source]:
    yield Source(
        name="remote",
        build="finetooth_remote.source:build",
        summary="files at https://, http:// and s3:// (gs:// and az:// untested), downloaded once",
        claims=claims,
    )
