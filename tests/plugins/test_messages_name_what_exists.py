"""What a message tells people to type exists: options of the command that says it, settings of recipes."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import click
from finetooth_core.cli.group import make_group
from finetooth_core.cli.start_options import StartOptions
from finetooth_core.cli.state import State
from finetooth_core.plugins import manager
from finetooth_core.settings.schema import field_in, recipe_schema
from finetooth_hooks import RecipeError

ROOT = Path(__file__).parents[2]
ROOMS = ("core/*", "kernels/*", "hooks/*", "plugins/*/*")
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]+")
OTHERS = re.compile(
    r"--help|mlx_lm\.convert|hf download|start it without|start vLLM|ft init --data|ft keys create|torchrun"
)
"""What every command has, or another program or command."""
NO_FIELDS = {"kernels.low_rank_linear", "sweep.space", "data.processor.video.fps"}
"""Settings that the schema does not list: operations by name, a section of one command, a processor's own."""


@cache
def action_texts() -> tuple[tuple[str, str], ...]:
    """Every `action` of an error in the sources: package and text, with `{}` for what is filled in."""
    files = [file for room in ROOMS for file in ROOT.glob(f"{room}/src/*/**/*.py")]
    sources = {file: file.read_text(encoding="utf-8") for file in files}
    return tuple(
        (file.as_posix().partition("/src/")[2].split("/")[0], text(given.value))
        for file, source in sources.items()
        if "action=" in source
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call)
        for given in node.keywords
        if given.arg == "action"
    )


def text(node: ast.expr) -> str:
    """The text of an expression, as far as it stands in the source."""
    match node:
        case ast.Constant(value=str(value)):
            return value
        case ast.JoinedStr():
            return "".join(text(part) or "{}" for part in node.values)
        case ast.BinOp():
            return text(node.left) + text(node.right)
        case ast.IfExp():
            return f"{text(node.body)} | {text(node.orelse)}"
    return ""


def options(command: click.Command, context: click.Context) -> Iterator[tuple[str, str]]:
    """Every option of a command and of those below it, with the package that brings it."""
    package = getattr(command.callback, "__module__", "").partition(".")[0]
    for parameter in command.params:
        yield from ((package, name) for name in (*parameter.opts, *parameter.secondary_opts))
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            assert below is not None
            yield from options(below, context)


def test_an_option_that_a_message_names_is_one_of_its_command() -> None:
    group = make_group()
    by_package: dict[str, set[str]] = {}
    for package, name in options(group, click.Context(group, obj=State(StartOptions()))):
        by_package.setdefault(package, set()).add(name)
    everywhere = set().union(*by_package.values())
    seen, wrong = 0, []
    for package, said in action_texts():
        for name in OPTION.findall("" if OTHERS.search(said) else said):
            seen += 1
            if name not in by_package.get(package, everywhere):
                wrong.append(f"{package}: {name}: {said}")
    assert seen > 80 and not wrong


def test_a_setting_that_a_message_names_is_one_of_recipes() -> None:
    schema = recipe_schema(manager.start().catalog)
    named = re.compile(rf"(?<![\w./-])(?:{'|'.join(schema['properties'])})(?:\.[a-z_]+)+(?![\w(/])")
    seen, wrong = 0, []
    for package, said in action_texts():
        for name in named.findall(said):
            if re.search(r"\.(json|jsonl|yaml|py|md|safetensors)$", name) or name in NO_FIELDS:
                continue
            seen += 1
            try:
                field_in(schema, name)
            except RecipeError as error:
                wrong.append(f"{package}: {error}: {said}")
    assert seen > 150 and not wrong
