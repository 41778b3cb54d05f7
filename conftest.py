"""For every test: the model hub is not asked, and property tests draw the same examples every time, so that what passed
passes again; `FT_EXPLORE=1` draws others."""

from __future__ import annotations

import os

from hypothesis import settings

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before any library that asks the hub is imported: tests use no network

settings.register_profile("repeatable", derandomize=True)
if not os.environ.get("FT_EXPLORE"):
    settings.load_profile("repeatable")
