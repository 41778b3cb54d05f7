"""The conformance kit over this plugin."""

from __future__ import annotations

import pytest
from finetooth_kit import parametrize_with_checks

pytest.importorskip("bitsandbytes", reason="needs bitsandbytes: pip install finetooth[bitsandbytes]")


@parametrize_with_checks("finetooth_bitsandbytes.plugin")
def test_conforms(check):
    check()
