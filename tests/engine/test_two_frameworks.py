"""Entries of two frameworks under one name are no ambiguity: those that speak the backend's framework are taken, and
with `backend: auto` the hardware that is there decides."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from finetooth_core.api import session
from finetooth_core.session import Session
from finetooth_hooks import PlanError, PluginError

pytest.importorskip("finetooth_torch")
pytest.importorskip("finetooth_lora")


def decided(monkeypatch: pytest.MonkeyPatch, metal: bool, model: str, **recipe: Any) -> Session:
    monkeypatch.setenv("FT_TEST_METAL", "1" if metal else "")
    plugins = ["two_frameworks", "toy_numpy.plugin"]
    return session(
        {"model": {"name": model}, **recipe}, plugins=plugins, blocked=["finetooth-mlx", "finetooth-metal"], data=False
    )


def picks(made: Session) -> dict[str, str]:
    names = ("backend", "hardware", "adapter", "optimizer", "loader")
    return {kind: made.plan.picks[kind].partition(":")[0] for kind in names}


TORCH = {
    "backend": "finetooth-torch",
    "hardware": "finetooth-cpu",
    "adapter": "finetooth-lora",
    "optimizer": "finetooth-standard",
    "loader": "finetooth-transformers",
}
OTHER = dict.fromkeys(TORCH, "two_frameworks")


@pytest.mark.slow
@pytest.mark.parametrize("metal", [False, True])
def test_the_named_backend_decides(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch, metal: bool) -> None:
    made = decided(monkeypatch, metal, str(tiny_llama), backend="torch", hardware="cpu", adapter="lora")
    assert picks(made) == TORCH


def test_the_other_backend_takes_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    made = decided(monkeypatch, True, "toy:1", backend="mlx", adapter="lora", optimizer="adamw")
    assert picks(made) == {**OTHER}


def test_named_hardware_decides(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert picks(decided(monkeypatch, True, str(tiny_llama), hardware="cpu")) == TORCH


def test_without_the_better_hardware_the_next_best_decides(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert picks(decided(monkeypatch, False, str(tiny_llama))) == TORCH


def test_the_best_hardware_that_is_there_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    assert picks(decided(monkeypatch, True, "toy:1")) == OTHER


def test_an_entry_of_no_framework_here_is_named_with_those_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(PluginError) as caught:
        _ = decided(monkeypatch, True, "toy:1", backend="numpy", adapter="lora", optimizer="plain_sgd").plan
    message = str(caught.value)
    assert "finetooth-lora:lora (for torch)" in message and "two_frameworks:lora (for mlx)" in message
    assert "the backend is numpy" in message


def test_a_framework_without_a_default_says_which_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(PluginError, match="no adapter is the default of backends that are numpy") as caught:
        _ = decided(monkeypatch, True, "toy:1", backend="numpy").plan
    assert "two_frameworks:lora for mlx" in str(caught.value)


def test_the_full_name_of_another_framework_is_still_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(PlanError, match="finetooth-lora:lora works with torch, but backend two_frameworks:mlx is mlx"):
        _ = decided(monkeypatch, True, "toy:1", backend="mlx", adapter="finetooth-lora:lora").plan
