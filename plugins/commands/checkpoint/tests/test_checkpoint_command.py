"""The command shows what the place of checkpoints says."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner
from finetooth_checkpoint.command import command
from finetooth_hooks import UserError

MANIFESTS = {
    "step-2": {"step": 2, "files": {"a": {"size": 5}, "b": {"size": 7}}, "metrics": {"eval/loss": 0.5}},
    "step-1": {"step": 1, "files": {"a": {"size": 5}}, "metrics": {"eval/loss": 0.75}},
}


def place(removed: list[str]) -> Any:
    return SimpleNamespace(
        only="", names=lambda none=False: list(MANIFESTS), set_aside=dict, manifest=MANIFESTS.__getitem__,
        verify=lambda name: "" if name == "step-2" else "a is damaged", remove=removed.append,
    )  # fmt: skip


def ft(*arguments: str) -> tuple[int, str, list[str]]:
    removed: list[str] = []
    commands = SimpleNamespace(checkpoints=lambda reference: place(removed))
    done = CliRunner().invoke(command, arguments, obj=commands, standalone_mode=False)
    if done.exception is not None:
        raise done.exception
    return done.return_value, done.output, removed


def test_the_list_has_sizes_and_metrics() -> None:
    code, text, _ = ft("list", "run", "--json")
    assert code == 0
    assert json.loads(text) == [
        {"name": "step-2", "step": 2, "bytes": 12, "metrics": {"eval/loss": 0.5}},
        {"name": "step-1", "step": 1, "bytes": 5, "metrics": {"eval/loss": 0.75}},
    ]


def test_a_damaged_one_is_named_and_ends_with_2() -> None:
    assert ft("verify", "run")[:2] == (2, "step-2: whole\nstep-1: a is damaged\n")


def test_a_damaged_one_is_never_removed() -> None:
    assert ft("prune", "run", "--keep-last", "1", "--yes")[2] == []


@pytest.mark.parametrize("option", [("--metric", "eval/loss"), ("--mode", "min")])
def test_what_only_orders_the_best_is_refused_without_them(option: tuple[str, str]) -> None:
    arguments = ("prune", "run", "--keep-last", "1", "--yes", *option)
    with pytest.raises(UserError, match=f"{option[0]}: only --keep-best N"):
        ft(*arguments)
    assert ft(*arguments, "--keep-best", "1")[0] == 0
