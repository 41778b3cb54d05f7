"""For every test: the model hub is not asked, and property tests draw the same examples every time, so that what passed
passes again; `FT_EXPLORE=1` draws others. And little time goes into looking for cycles among what lives as long as the
process: the libraries and thousands of collected tests."""

from __future__ import annotations

import gc
import os
from collections.abc import Generator

import pytest
from hypothesis import settings

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before any library that asks the hub is imported: tests use no network

settings.register_profile("repeatable", derandomize=True, deadline=None)  # no clock judges an example
if not os.environ.get("FT_EXPLORE"):
    settings.load_profile("repeatable")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """The collector of cycles rests meanwhile, and only its rare full collections look at what was made: all of it
    stays. Not frozen for good: counting what is frozen, as `finetooth_core.collector` does, walks over all of it."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.unfreeze()  # into the oldest generation
        gc.enable()
