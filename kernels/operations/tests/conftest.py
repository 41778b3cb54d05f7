"""What the kernels' tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="module", params=["torch", "native"])
def implementation(request: pytest.FixtureRequest) -> Iterator[str]:
    """The operations that a test module names, as torch has them and, where they can be compiled, with compiled
    kernels."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "native":
            operations = pytest.importorskip("finetooth_native.operations")
            build = pytest.importorskip("finetooth_native.build")
            if not (answer := build.available()).available:
                pytest.skip(answer.reason)
            for name in set(operations.__all__) & set(vars(request.module)):
                patch.setattr(request.module, name, getattr(operations, name))
        yield request.param
