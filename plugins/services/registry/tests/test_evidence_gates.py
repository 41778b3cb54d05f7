"""Release gates over files, records and kept answers: what each holds back, and that it says the same again."""

from __future__ import annotations

from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from finetooth_hooks import ReleaseVersion, UserError
from finetooth_registry import evidence_gates as gates
from finetooth_registry import release_gates


def version(folder: Path, scores: dict[str, float] | None = None, number: int = 1, **about: Any) -> ReleaseVersion:
    rows = tuple({"id": name, "score": score, "answer": "fine"} for name, score in (scores or {}).items())
    return ReleaseVersion("bot", number, folder, {"predicate": about}, {}, {"probes": rows} if rows else {})


def test_size_adds_up_every_file(tmp_path: Path) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    for name, size in (("one", 600_000), ("a/b/two", 500_000)):
        (tmp_path / name).write_bytes(b"x" * size)
    for most, passes in ((1.0, False), (1.1, True)):
        said = gates.Size(gates.SizeOptions(max_mb=most)).judge(version(tmp_path), None)  # type: ignore[arg-type]
        assert said.passed is passes and said.evidence == {"mb": 1.1, "max_mb": most}


@pytest.mark.parametrize("licence, passes", [("CC0-1.0", True), ("proprietary", False), ("", False), (None, False)])
def test_the_licence_of_the_data_is_one_of_those_allowed(tmp_path: Path, licence: str | None, passes: bool) -> None:
    gate = gates.Licence(gates.LicenceOptions(allowed=("CC0-1.0", "MIT")))
    assert gate.judge(version(tmp_path, classification={"licence": licence}), None).passed is passes
    assert not gate.judge(version(tmp_path), None).passed


def test_what_nobody_reproduced_is_held(tmp_path: Path) -> None:
    exact, near = (gates.Reproduced(gates.ReproducedOptions(tolerance=tolerance)) for tolerance in (0.0, 1e-3))
    made = version(tmp_path)
    assert "ft reproduce bot@v1 --keep" in exact.judge(made, None).reason

    def after(differences: float, tolerance: float) -> ReleaseVersion:
        return replace(made, metrics={"reproduced/differences": differences, "reproduced/tolerance": tolerance})

    assert exact.judge(after(0, 0), None).passed and near.judge(after(0, 1e-3), None).passed
    assert not exact.judge(after(0, 1e-3), None).passed, "the gate wants it bit for bit"
    assert not near.judge(after(1, 0), None).passed


def test_no_probe_may_be_lost(tmp_path: Path) -> None:
    gate = gates.NoRegression(gates.NoRegressionOptions())
    before = version(tmp_path, {"a": 1, "b": 1, "c": 0}, 0)
    assert gate.judge(version(tmp_path, {"a": 1, "b": 1, "c": 1}), before).passed
    lost = gate.judge(version(tmp_path, {"a": 1, "b": 0, "c": 1}), before)
    assert not lost.passed and lost.evidence["lost"] == ["b"], "what is gained makes up for nothing"
    assert (
        gates.NoRegression(gates.NoRegressionOptions(allowed=1))
        .judge(version(tmp_path, {"a": 1, "b": 0, "c": 1}), before)
        .passed
    )
    assert gate.judge(before, None).passed and not gate.judge(version(tmp_path), before).passed
    assert not gate.judge(version(tmp_path, {"a": 1, "b": 1}), before).passed, "a row less"
    assert not gate.judge(version(tmp_path, {"a": 1, "b": float("nan"), "c": 1}), before).passed


def test_safety_looks_at_its_group_alone(tmp_path: Path) -> None:
    gate = gates.Safety(gates.SafetyOptions())
    assert gate.judge(version(tmp_path, {"safety-a": 1, "facts-a": 0}), None).passed
    failed = gate.judge(version(tmp_path, {"safety-a": 1, "safety-b": 0}), None)
    assert not failed.passed and failed.evidence["failed"] == ["safety-b"]
    assert (
        gates.Safety(gates.SafetyOptions(least=0.5))
        .judge(version(tmp_path, {"safety-a": 1, "safety-b": 0}), None)
        .passed
    )
    assert not gate.judge(version(tmp_path, {"facts-a": 1}), None).passed, "nothing of the group was asked"


PERSONAL = {
    "write to anna.b@mail.example.org": ["e-mail"], "call (650) 253-0000": ["telephone"],
    "+49 30 901820": ["telephone"], "DE89 3704 0044 0532 0130 00": ["IBAN"], "4111-1111-1111-1111": ["payment card"],
    "GB82WEST12345698765432 and a@b.co": ["e-mail", "IBAN"],
    "the 4111 1111 1111 1112 of 2024-01-01": [], "DE88 3704 0044 0532 0130 00": [], "a@b, 3.14159265358979": [],
}  # fmt: skip
"""Numbers that banks, card networks and numbering plans publish as examples, and the same with a wrong check digit."""


@pytest.mark.parametrize("text", PERSONAL)
def test_personal_data_of_a_known_form_are_seen(text: str) -> None:
    pytest.importorskip("phonenumbers", reason="phonenumbers is not installed")
    pytest.importorskip("stdnum", reason="python-stdnum is not installed")
    assert list(gates.personal(text, "US")) == PERSONAL[text]


def test_pii_searches_the_rows_of_the_record_and_no_others(tmp_path: Path) -> None:
    pytest.importorskip("phonenumbers", reason="phonenumbers is not installed")
    pytest.importorskip("stdnum", reason="python-stdnum is not installed")
    rows, other = tmp_path / "rows.jsonl", tmp_path / "other.jsonl"
    rows.write_text('{"text": "fine"}\n{"text": "mail a@b.example"}\n')
    other.write_text("{}")
    data = {"data.train.sha256": sha256(rows.read_bytes()).hexdigest()}
    made = version(tmp_path, {"a": 1}, data=data)
    alone = gates.Pii(gates.PiiOptions()).judge(made, None)
    assert alone.passed and alone.evidence["texts"] == 1
    said = gates.Pii(gates.PiiOptions(data=(str(rows),))).judge(made, None)
    assert not said.passed and said.evidence == {"texts": 3, "kinds": {"e-mail": 1}, "first": [f"{rows}:2"]}
    assert (
        "none of the files of training rows" in gates.Pii(gates.PiiOptions(data=(str(other),))).judge(made, None).reason
    )
    more = version(tmp_path, {"a": 1}, data={**data, "data.train.1.sha256": "0" * 64})
    assert (
        "data.train.1.sha256 were not searched"
        in gates.Pii(gates.PiiOptions(data=(str(rows),))).judge(more, None).reason
    )
    assert not gates.Pii(gates.PiiOptions()).judge(version(tmp_path), None).passed, "nothing to search"


def test_pii_says_what_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "phonenumbers", None)
    with pytest.raises(UserError, match=r"registry\[pii\]"):
        gates.Pii(gates.PiiOptions()).judge(version(tmp_path, {"a": 1}), None)


@pytest.mark.parametrize("shift", [0.0, -0.05, -0.5, 0.3])
def test_scores_in_between_are_judged_by_a_paired_bootstrap(tmp_path: Path, shift: float) -> None:
    """Against SciPy's percentile bootstrap of the mean of the differences."""
    import numpy as np
    from scipy.stats import bootstrap

    draws = np.random.default_rng(0)
    before = {str(row): float(value) for row, value in enumerate(draws.random(80))}
    after = {row: value + shift + float(draws.normal(0, 0.1)) for row, value in before.items()}
    options = release_gates.NotWorseOptions(metric="m", answers="probes", test="bootstrap")
    now, then = (
        replace(version(tmp_path, scores, number), metrics={"m": 0.5}) for number, scores in ((1, after), (0, before))
    )
    said = release_gates.NotWorse(options).judge(now, then)
    changes = np.array([after[row] - before[row] for row in before])
    truth = bootstrap((changes,), np.mean, confidence_level=0.9, method="percentile", rng=draws).confidence_interval
    assert said.evidence["low"] == pytest.approx(truth.low, abs=4e-3)
    assert said.evidence["high"] == pytest.approx(truth.high, abs=4e-3)
    assert said.passed == (truth.high >= 0) and said == release_gates.NotWorse(options).judge(now, then)
