"""The command prints the schema that it is given."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
from click.testing import CliRunner
from finetooth_schema.command import command


@pytest.mark.parametrize(("arguments", "setting"), [((), ""), (("--field", "train.seed"), "train.seed")])
def test_it_prints_the_schema_of_the_setting(arguments: tuple[str, ...], setting: str) -> None:
    commands = SimpleNamespace(schema=lambda asked: {"title": asked})
    done = CliRunner().invoke(command, arguments, obj=commands)
    assert json.loads(done.output) == {"title": setting}
