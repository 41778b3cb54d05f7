"""The conformance kit over this plugin."""

from __future__ import annotations

import pytest
from finetooth_kit import parametrize_with_checks

pytest.importorskip("wandb", reason="wandb is not installed")


@parametrize_with_checks("finetooth_wandb.plugin")
def test_conforms(check):
    check()
