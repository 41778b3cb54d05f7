"""What a rank says that has no line to the others any more."""

from __future__ import annotations

import pytest
from finetooth_torchshared import collective

CLOSED = (
    "[/__w/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:30414. This "
    "is typically caused by a remote worker crashing. Check the logs of the remote worker before reporting an error."
)


def test_the_reason_is_the_librarys_without_its_source_and_its_advice() -> None:
    assert collective.lost(RuntimeError(CLOSED)).problem == (
        "rank 0 lost the others: Connection closed by peer [127.0.0.1]:30414"
    )


def test_only_errors_of_a_line_are_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not collective.is_of_line(RuntimeError(CLOSED))  # this process has no line
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    assert collective.is_of_line(RuntimeError(CLOSED))
    assert not collective.is_of_line(RuntimeError("shapes differ")) and not collective.is_of_line(ValueError(CLOSED))
