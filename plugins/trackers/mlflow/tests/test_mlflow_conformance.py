"""The conformance kit over this plugin."""

from __future__ import annotations

import pytest
from finetooth_kit import parametrize_with_checks

pytest.importorskip("mlflow", reason="mlflow is not installed")
pytestmark = pytest.mark.slow  # its database takes seconds to make


@parametrize_with_checks("finetooth_mlflow.plugin")
def test_conforms(check):
    check()
