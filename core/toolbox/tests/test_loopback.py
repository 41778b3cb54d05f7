"""Hosts and URLs that are this machine, and those that only look so."""

from __future__ import annotations

import pytest
from finetooth_toolbox.loopback import is_loopback, is_loopback_url


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.8.0.1", "::1"])
def test_this_machine(host: str) -> None:
    assert is_loopback(host)
    assert is_loopback_url(f"http://[{host}]:80" if ":" in host else f"//{host}:80")


@pytest.mark.parametrize("host", ["", "0.0.0.0", "10.0.0.1", "localhost.evil.example", "127.0.0.1.evil.example"])
def test_other_machines(host: str) -> None:
    assert not is_loopback(host)
    assert not is_loopback_url(f"http://{host}")


def test_a_url_that_cannot_be_read_is_not_this_machine() -> None:
    assert not is_loopback_url("http://[::1")
