"""Release gates compare numbers and pairs of answers as statistics says."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from finetooth_hooks import ReleaseVersion, UserError, Verdict
from finetooth_registry import release_gates
from finetooth_registry.policy import load_policy
from finetooth_registry.releasing import judge


def version(number: int, right: Mapping[str, bool]) -> ReleaseVersion:
    answers = tuple({"id": name, "score": float(fine)} for name, fine in right.items())
    return ReleaseVersion("bot", number, Path(), {}, {"m": sum(right.values()) / len(right)}, {"exact": answers})


@pytest.mark.parametrize("lost, gained", [(1, 0), (4, 0), (5, 0), (8, 1), (7, 3), (3, 3), (0, 5)])
def test_pairs_of_answers_are_judged_by_the_exact_test(lost: int, gained: int) -> None:
    """Against SciPy's binomial test."""
    from scipy.stats import binomtest

    before = {str(i): i < lost for i in range(20)} | {"z": True}
    after = {str(i): lost <= i < lost + gained for i in range(20)} | {"z": True}
    options = release_gates.NotWorseOptions(metric="m", answers="exact")
    said = release_gates.NotWorse(options).judge(version(1, after), version(0, before))
    chance = binomtest(lost, lost + gained, alternative="greater").pvalue
    assert said.evidence["p"] == pytest.approx(chance)
    assert said.passed == (chance >= 0.05 or lost <= gained)


def test_answers_to_other_rows_are_not_compared() -> None:
    gate = release_gates.NotWorse(release_gates.NotWorseOptions(metric="m", answers="exact"))
    assert not gate.judge(version(1, {"a": True}), version(0, {"b": True})).passed


def test_nan_never_passes() -> None:
    gate = release_gates.NotWorse(release_gates.NotWorseOptions(metric="m", tolerance=9))
    nan = ReleaseVersion("bot", 1, Path(), {}, {"m": float("nan")})
    assert not gate.judge(nan, ReleaseVersion("bot", 0, Path(), {}, {"m": 0.5})).passed
    bound = release_gates.AtLeast(release_gates.AtLeastOptions(metric="m", min=0, max=1))
    assert not bound.judge(nan, None).passed


def test_a_signed_record_that_names_no_data_is_rejected() -> None:
    """As of a streamed set, whose version would be refused where it is loaded."""
    gate = release_gates.Signed(release_gates.SignedOptions())
    about = {"base_digest": "b", "recipe_sha256": "r", "data": {}}
    said = gate.judge(ReleaseVersion("bot", 1, Path(), {"predicate": about}, signers=("alice",)), None)
    assert not said.passed and "does not say data" in said.reason and said.evidence
    about["data"] = {"data.train.sha256": "d"}
    assert gate.judge(ReleaseVersion("bot", 1, Path(), {"predicate": about}, signers=("alice",)), None).passed


def test_a_gate_that_is_refused_is_named_by_its_place_in_the_policy() -> None:
    settings: list[str] = []
    gate = SimpleNamespace(judge=lambda *versions: Verdict(True, "fine"))
    commands: Any = SimpleNamespace(build=lambda kind, pick, setting: settings.append(setting) or gate)
    candidate: Any = None
    judge(commands, ["signed", {"name": "size"}], "channels.beta.gates", candidate, None)
    assert settings == ["channels.beta.gates.0", "channels.beta.gates.1"]


def test_a_policy_that_cannot_be_read_or_repeats_gates_is_refused(tmp_path: Path) -> None:
    (tmp_path / "policy.yaml").write_text("channels:\n  production:\n    gates: [signed]\n    gates: []\n")
    with pytest.raises(UserError, match=r"policy.yaml is not YAML: the key gates stands twice.* line 3"):
        load_policy(tmp_path)
    (tmp_path / "policy.yaml").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match=r"policy.yaml is not YAML: 'utf-8' codec can't decode byte 0xff"):
        load_policy(tmp_path)
    for text, said in (
        ("chanels: {}", r"policy.yaml: chanels: unknown setting \(did you mean channels\?\)"),
        ("channels: {beta: {gate: []}}", r"channels\.beta\.gate: .*\(did you mean channels\.beta\.gates\?\)"),
        ("channels: {beta: {lr: 1}}", r"channels\.beta\.lr: .*\(known: gates, signed_decisions, watch\)"),
    ):
        (tmp_path / "policy.yaml").write_text(text)
        with pytest.raises(UserError, match=said):
            load_policy(tmp_path)
