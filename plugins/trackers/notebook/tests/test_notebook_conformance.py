"""The conformance kit over this plugin."""

from __future__ import annotations

from finetooth_kit import parametrize_with_checks


@parametrize_with_checks("finetooth_notebook.plugin")
def test_conforms(check):
    check()
