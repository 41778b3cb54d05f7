"""The conformance kit: what every plugin and every engine must pass, for anyone to run over their own.

    from finetooth_kit import parametrize_with_checks

    @parametrize_with_checks("acme.plugin")
    def test_plugin(check):
        check()

One named test for each entry and check, such as `loss:dpo-masked_targets_do_not_matter`. Without pytest,
`run_checks("acme.plugin")` returns a `CheckResult` for each. Engines have checks of their own: `parametrize_engine`.
"""

from __future__ import annotations

from finetooth_kit.byte_tokenizer import ByteTokenizer
from finetooth_kit.checks import Check, CheckFailed, CheckResult, CheckSkipped, run_check
from finetooth_kit.collection import collect, entries_of, failures, run_checks
from finetooth_kit.delegating import declared, delegating
from finetooth_kit.draws import draws
from finetooth_kit.engines.checks import engine_checks, parametrize_engine
from finetooth_kit.fake_context import FakeCatalog, FakeContext, PlainRenderer, conversations
from finetooth_kit.fake_engine import FakeEngine
from finetooth_kit.fake_run import FakeRun, plan_of
from finetooth_kit.parametrize import parametrize_with_checks
from finetooth_kit.torch_request import torch_request

__all__ = [
    "ByteTokenizer",
    "Check",
    "CheckFailed",
    "CheckResult",
    "CheckSkipped",
    "FakeCatalog",
    "FakeContext",
    "FakeEngine",
    "FakeRun",
    "PlainRenderer",
    "collect",
    "conversations",
    "declared",
    "delegating",
    "draws",
    "engine_checks",
    "entries_of",
    "failures",
    "parametrize_engine",
    "parametrize_with_checks",
    "plan_of",
    "run_check",
    "run_checks",
    "torch_request",
]
