"""Checks of release gates: a registry records their verdicts and repeats them."""

from __future__ import annotations

import json

from finetooth_hooks.releases import ReleaseVersion, Verdict

from finetooth_kit.checks import EntryCase, check_for, expect


@check_for("release_gate")
def verdict_is_a_record(case: EntryCase) -> None:
    """`judge` returns a verdict with a reason of one line and evidence that JSON can hold, the same when asked again,
    with a predecessor and without one."""
    gate = case.build()
    metrics = {"eval/loss": 1.0, "exact_match/accuracy": 0.5}
    candidate = ReleaseVersion("toy", 1, case.folder, {}, metrics, signers=("toy",))
    for predecessor in (None, ReleaseVersion("toy", 0, case.folder, {}, metrics)):
        verdict = gate.judge(candidate, predecessor)
        expect(isinstance(verdict, Verdict), f"{case.called}.judge", repr(verdict)[:80], "a Verdict")
        expect(isinstance(verdict.passed, bool), f"{case.called}.judge: passed", repr(verdict.passed), "True or False")
        reason = verdict.reason
        expect(bool(reason) and "\n" not in reason, f"{case.called}.judge: reason", repr(reason), "one line")
        text = json.dumps(dict(verdict.evidence), allow_nan=False, sort_keys=True)
        again = json.dumps(dict(gate.judge(candidate, predecessor).evidence), allow_nan=False, sort_keys=True)
        expect(text == again, f"{case.called}.judge: evidence", again[:80], text[:80])
