"""What no command takes, whatever it does with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner
from finetooth_core.cli import main
from finetooth_guards.arguments import guarded
from finetooth_hooks import UserError


def called(*arguments: str) -> Any:
    """What a subcommand got; the group is guarded twice, as one that is called twice in a process."""

    @click.group()
    def group() -> None: ...

    @group.command()
    @click.argument("place", type=click.Path(path_type=Path))
    @click.argument("overrides", nargs=-1)
    @click.option("-n", "--name", required=True)
    @click.option("--system")
    @click.option("--heat", type=float, multiple=True)
    @click.option("--most", type=float, default=float("inf"))
    def do(**given: Any) -> Any:
        return given

    return CliRunner().invoke(guarded(guarded(group)), ["do", *arguments], standalone_mode=False)


BYTES = b"a\xff".decode("utf-8", "surrogateescape")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([BYTES, "--name", "x"], f"PLACE: {BYTES!r} is not utf-8 text (write it in UTF-8)"),
        (["p", f"train.x={BYTES}", "-n", "x"], f"train.x: {'train.x=' + BYTES!r} is not"),
        (["p", "-n", BYTES], f"--name: {BYTES!r} is not"),
        (["", "-n", "x"], "PLACE: must not be empty (write a name or a path)"),
        (["p", "-n", " "], "--name: must not be empty"),
        (["p", "-n", "x", "--heat", "1", "--heat", "nan"], "--heat: nan is not finite (write a finite number)"),
        (["p", "-n", "x", "--most", "-inf"], "--most: -inf is not finite"),
    ],
)
def test_it_is_refused_with_the_option_or_setting(arguments: list[str], said: str) -> None:
    error = called(*arguments).exception
    assert isinstance(error, UserError) and error.exit_code == 2 and str(error).startswith(said), error


def test_all_else_is_taken_as_it_was() -> None:
    """Text that may be empty, a default that is not finite, and signs of any script."""
    given = called("Ordner/größe\u200b", "a=b", "--name", "名", "--system", "", "--heat", "0.5").return_value
    assert given == {
        "place": Path("Ordner/größe\u200b"), "overrides": ("a=b",), "name": "名", "system": "", "heat": (0.5,),
        "most": float("inf"),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(["chat", "model", "--temperature", "nan"], "--temperature"), (["fetch", "--to", ""], "--to")],
)
def test_commands_of_plugins_are_guarded(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {said}: ") and error.count("\n") == 1, error
    assert not list(tmp_path.iterdir())
