"""`ft plugins try`: three steps with each entry, and how it failed."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from finetooth_authoring.trials import changes_for, fault_of
from finetooth_core.cli import main
from finetooth_hooks.entries import ENTRY_TYPES

FAULTY = """
import time

from finetooth_hooks import Loss, NoOptions, Optimizer, OptimizerBase, Options, hookimpl
from finetooth_hooks.losses import Contribution, LossResult


@hookimpl
def ft_optimizers():
    for way in ("sound", "raises", "nan", "none"):
        yield Optimizer(name=f"acme_{way}", build=f"{__name__}:{way}", state_bytes=0.0)


@hookimpl
def ft_losses():
    for way in ("flat", "shapeless"):
        yield Loss(name=f"acme_{way}", build=f"{__name__}:{way}")


class Rate(Options):
    learning_rate: float = 0.01


def maker(change):
    def build(options: Rate, context):
        import torch

        class Step(torch.optim.SGD):
            def step(self, closure=None):
                change(self)
                return super().step(closure)

        class Made(OptimizerBase):
            learning_rate = 0.01

            def create(self, named_parameters):
                return Step([p for _, p in named_parameters], lr=0.01) if change else None

        return Made()

    return build


def fail(optimizer):
    raise RuntimeError("no step today")


def spoil(optimizer):
    for parameter in optimizer.param_groups[0]["params"]:
        parameter.data.fill_(float("nan"))


sound, raises, nan, none = (maker(change) for change in (lambda optimizer: None, fail, spoil, None))


def flat(options: NoOptions, context):
    return lambda outputs, data, state: LossResult({"x": Contribution((outputs["logprobs"] * 0.0).sum() + 1.0)})


def shapeless(options: NoOptions, context):
    return lambda outputs, data, state: LossResult({"x": Contribution(outputs["logprobs"])})
"""
HANGS = """
import time

from finetooth_hooks import NoOptions, Schedule, hookimpl


@hookimpl
def ft_schedules():
    yield Schedule(name="acme_slow", build=f"{__name__}:build")


def build(options: NoOptions, context):
    time.sleep(600)
"""
REPORT = {
    "loss:acme_flat": "no gradient: the norm of the gradient is 0 at every step",
    "loss:acme_shapeless": r"shape: .*faulty\.py: loss 'acme_shapeless' returned a total of 'x' of shape",
    "optimizer:acme_sound": "3 steps, losses [0-9. ]+$",
    "optimizer:acme_raises": r"raises: .*faulty\.py.*no step today",
    "optimizer:acme_nan": r"NaN: .*not finite at step 2.*; computed with optimizer 'acme_nan' of .*faulty",
    "optimizer:acme_none": r"None: .*faulty\.py: optimizer 'acme_none': create\(\) returned None",
}


@pytest.mark.slow
def test_each_entry_is_tried_and_its_fault_is_of_a_kind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "faulty.py"
    file.write_text(FAULTY)
    assert main(["--plugins", str(file), "plugins", "try", str(file)]) == 2
    said = capsys.readouterr()
    lines = {line.split()[1]: line for line in said.out.splitlines()}
    assert lines.keys() == REPORT.keys() and "5 faults" in said.err
    for entry, wanted in REPORT.items():
        assert re.search(wanted, lines[entry]), lines[entry]
        assert lines[entry].startswith("ok" if entry == "optimizer:acme_sound" else "FAULT")
        assert "plugin finetooth-" not in lines[entry]


@pytest.mark.slow
def test_what_does_not_end_hangs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "hangs.py"
    file.write_text(HANGS)
    assert main(["--plugins", str(file), "plugins", "try", str(file), "--limit", "1"]) == 2
    assert "FAULT  schedule:acme_slow  hangs: it did not end within 1 s" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "code", "fault"),
    [
        ("loss is nan at step 2; computed with optimizer 'x' of acme-x", 1, "NaN"),
        ("the gradient is not finite", 1, "NaN"),
        ("acme-x: evaluator 'x': evaluate() returned None, not Evaluation [x.py:3]", 2, "None"),
        ("acme-x: source 'x' yielded None, not a Row", 2, "None"),
        ("acme-x: reward 'x' returned 1 score for 2 completions", 2, "shape"),
        ("acme-x: attention 'x' returned fp32 of shape (1, 2), not fp32 of shape (2, 1)", 2, "shape"),
        ("acme-x: schedule 'x': factor() returned 'much', not a finite number", 2, "type"),
        ("method.losses: no such option", 2, "refused"),
        ("acme-x 0.1: RuntimeError: not today [x.py:7]", 1, "raises"),
    ],
)
def test_faults_are_told_apart(line: str, code: int, fault: str) -> None:
    assert fault_of(line, code) == fault


NO_RUN = {"face", "command", "release_gate", "processor", "loader", "family", "store"}
"""Kinds that no recipe picks, or only with a file, a model or a place of the plugin's own."""


@pytest.mark.parametrize("kind", ENTRY_TYPES)
def test_every_kind_is_tried_or_said_not_to_be(kind: str, tmp_path: Path) -> None:
    entry: Any = object.__new__(ENTRY_TYPES[kind])
    for name, value in {
        "together": "sequence",
        "example_rows": (),
        "serves": [SimpleNamespace(operation="rms_norm")],
    }.items():
        object.__setattr__(entry, name, value)
    assert (changes_for(entry, {"name": "acme"}, tmp_path) is None) == (kind in NO_RUN)
