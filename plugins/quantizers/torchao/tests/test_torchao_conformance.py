"""The conformance kit over this plugin."""

from __future__ import annotations

import pytest
from finetooth_kit import parametrize_with_checks

pytest.importorskip("torchao", reason="needs torchao: pip install finetooth[torchao]")


@parametrize_with_checks("finetooth_torchao.plugin")
def test_conforms(check):
    check()
