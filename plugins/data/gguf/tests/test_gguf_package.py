"""The gguf package is imported without what it looks for and nothing here uses."""

from __future__ import annotations

import subprocess
import sys

import pytest

SAYS = """
import sys
import finetooth_modelfiles.gguf.container
assert not [name for name in sys.modules if name.startswith("mistral_common")]
import mistral_common
import mistral_common.tokens.tokenizers.tekken
"""


def test_mistral_common_is_not_imported_and_can_be_afterwards() -> None:
    pytest.importorskip("mistral_common")
    subprocess.run([sys.executable, "-c", SAYS], check=True)
