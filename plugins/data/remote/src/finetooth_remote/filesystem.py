"""fsspec's file systems, with settings for long transfers and exact errors of interrupted ones."""

from __future__ import annotations

from typing import Any, BinaryIO, cast

import fsspec  # type: ignore[import-untyped]
from finetooth_hooks import PluginError, install_command

from finetooth_remote.address import Address
from finetooth_remote.plugin import SCHEMES

CONNECT_SECONDS = 5
READ_SECONDS = 60
"""Without a byte for so long a transfer has failed."""


def file_system(address: Address) -> Any:
    """A new file system for an address each time, so that no cached facts are used.

    Raises:
        PluginError: the package for this kind of address is not installed.
    """
    options: dict[str, Any] = {}
    try:
        if address.scheme.startswith("http"):
            options = _http_options()
        elif address.scheme == "s3":
            # botocore would try five times, each of the attempts that are made here
            retries = {"total_max_attempts": 1}
            options = {"config_kwargs": {"retries": retries, "connect_timeout": CONNECT_SECONDS}}
        return fsspec.filesystem(address.scheme, skip_instance_cache=True, use_listings_cache=False, **options)
    except ImportError as error:
        extra = SCHEMES[address.scheme]
        raise PluginError(
            "finetooth-remote",
            f"{address.scheme}:// needs a package that is not installed ({error})",
            action=install_command(f"finetooth-remote[{extra}]"),
        ) from error


def _http_options() -> dict[str, Any]:
    import aiohttp

    # aiohttp would end a transfer after five minutes, and decompress a compressed file
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=READ_SECONDS)
    return {
        "client_kwargs": {"timeout": timeout, "auto_decompress": False},
        "headers": {"Accept-Encoding": "identity"},
    }


def open_stream(system: Any, address: Address) -> BinaryIO:
    """The bytes of an address, in order, in one request where the file system can."""
    options = {"block_size": 0} if address.scheme.startswith("http") else {}
    return cast(BinaryIO, system.open(address.full, "rb", **options))
