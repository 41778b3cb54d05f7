"""What the tests of compiled kernels share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest
from finetooth_native import build
from finetooth_native import build as native


def switch_off(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(build, "_outcome", build._Outcome(None, "off in this test"))


@pytest.fixture
def native_off() -> Callable[[], AbstractContextManager[None]]:
    """While it is open there are no compiled kernels."""

    @contextmanager
    def off() -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            switch_off(patch)
            yield

    return off


@pytest.fixture(scope="module", params=["torch", "native"])
def implementation(request: pytest.FixtureRequest) -> Iterator[str]:
    """Kernels as torch operations and, where they can be compiled, as compiled ones."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "torch":
            switch_off(patch)
        elif not (answer := native.available()).available:
            pytest.skip(answer.reason)
        yield request.param


@pytest.fixture(scope="session")
def compiled() -> native.Library:
    """The compiled kernels."""
    kernels = native.library()
    if kernels is None:
        pytest.skip(native.available().reason)
    return kernels
