"""`ft plugins try`: three steps with each entry, and how it failed."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from finetooth_authoring.trials import ELSEWHERE, changes_for, fault_of
from finetooth_core.cli import main
from finetooth_hooks.entries import ENTRY_TYPES

FAULTY = """
import time

from finetooth_hooks import Loss, NoOptions, Optimizer, OptimizerBase, Options, hookimpl
from finetooth_hooks.compute.losses import Contribution, LossResult


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


def test_a_broken_plugin_is_no_sound_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "broken.py"
    file.write_text("from finetooth_hooks import hookimpl\n\n@hookimpl\ndef ft_losess():\n    yield 1\n")
    assert main(["--plugins", str(file), "plugins", "try", str(file)]) == 2
    assert "ft_losess is not a hook; the nearest is ft_losses" in capsys.readouterr().err


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


NO_RUN = {"face", "page", "command", "release_gate", "processor"}
"""Kinds that no recipe of a small run picks; of a command the help is shown."""


def entry_of(kind: str, **about: Any) -> Any:
    entry = object.__new__(ENTRY_TYPES[kind])
    serves = [SimpleNamespace(operation="rms_norm")]
    for name, value in {"together": "sequence", "example_rows": (), "serves": serves, **about}.items():
        object.__setattr__(entry, name, value)
    return entry


@pytest.mark.parametrize("kind", ENTRY_TYPES)
def test_every_kind_is_tried_or_said_not_to_be(kind: str, tmp_path: Path) -> None:
    entry = entry_of(
        kind, tier="disk", claims=lambda reference: True, model_types={"qwen2"}, example_task={"prompt": "?"}
    )
    assert (changes_for(entry, {"name": "acme"}, tmp_path, tmp_path / "model") is None) == (kind in NO_RUN)
    assert kind in ELSEWHERE or kind not in NO_RUN - {"command"}


@pytest.mark.parametrize(
    ("kind", "about"),
    [
        ("loader", {"claims": lambda reference: None}), ("family", {"model_types": {"of nobody"}}),
        ("store", {"tier": "remote"}), ("sampler", {"remote": True}), ("environment", {"remote": True}),
    ],
)  # fmt: skip
def test_what_needs_more_than_a_small_run_is_told_how_to_test(kind: str, about: dict[str, Any], tmp_path: Path) -> None:
    assert changes_for(entry_of(kind, **about), {"name": "acme"}, tmp_path, tmp_path / "model") is None
    assert "ft " in ELSEWHERE[kind]


OTHER_KINDS = """
import click

from finetooth_hooks import Command, NoOptions, Reward, hookimpl


def renamed(module, hook, name):
    from dataclasses import replace
    from importlib import import_module

    entries = getattr(import_module(f"{module}.plugin"), hook)()
    return [replace(entry, name="acme") for entry in entries if entry.name == name]


@hookimpl
def ft_environments():
    return renamed("finetooth_basicenvironments", "ft_environments", "single_turn")


@hookimpl
def ft_stores():
    return renamed("finetooth_disk", "ft_stores", "disk")


@hookimpl
def ft_samplers():
    return renamed("finetooth_enginesampler", "ft_samplers", "engine")


@hookimpl
def ft_families():
    return renamed("finetooth_qwen", "ft_families", "qwen")


@hookimpl
def ft_kernels():
    return renamed("finetooth_torch", "ft_kernels", "torch")


@hookimpl
def ft_rewards():
    yield Reward(name="acme_flat", build=f"{__name__}:flat")


@hookimpl
def ft_commands():
    yield Command(name="acme-hello", build=f"{__name__}:hello")


def flat(options: NoOptions, context):
    return lambda prompts, completions, columns: [1.0] * len(completions)


@click.command("acme-hello")
def hello():
    \"\"\"Say hello.\"\"\"
"""


@pytest.mark.slow
def test_kinds_that_need_a_model_or_rows_of_their_own_are_tried(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "others.py"
    file.write_text(OTHER_KINDS)
    code = main(["--plugins", str(file), "plugins", "try", str(file)])
    said = capsys.readouterr()
    assert code == 0, said.out
    tried = ("environment:acme", "store:acme", "sampler:acme", "family:acme", "kernel:acme", "reward:acme_flat")
    for entry in tried:
        assert re.search(rf"^ok +{entry}  3 steps, losses ", said.out, re.MULTILINE), said.out
    assert re.search(r"^ok +command:acme-hello  its --help is shown$", said.out, re.MULTILINE), said.out
