"""`ft import FILE`: a recipe from another tool's configuration."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
from finetooth_hooks import CommandContext, FinetoothError, UserError
from finetooth_toolbox.cli.working import working

from finetooth_importer import files, packing
from finetooth_importer.account import Account, Line, flattened
from finetooth_importer.tools import llamafactory, mudpuppy, torchtune, trl, unsloth
from finetooth_importer.written import as_yaml, shortened, tidied

NESTED = ("torchtune", "autotrain", "mlx-lm", "corpus-recipe")
"""Tools whose settings stand in mappings inside mappings; each is a key of the account, `optimizer.lr`."""

ALL_OR_OWN = ("pretrain", "grpo", "rloo", "ppo", "reinforce_plus_plus")
"""Methods that train whole documents, or what the model writes."""

HEADINGS = {
    "otherwise": "Taken with another meaning",
    "default": "Left out there, but defaults differ: set to the tool's",
    "not taken": "Not taken",
    "taken": "Taken",
    "no effect": "Changes nothing here",
}


@click.command("import")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--from", "tool", type=click.Choice(files.TOOLS), help="Tool of FILE; default: guessed from its keys.")
@click.option("--output", type=click.Path(path_type=Path), help="The recipe's file; default: recipe.yaml.")
@click.option("--all", "all_", is_flag=True, help="Also list the keys that were taken over.")
@click.option(
    "--json", "as_json", is_flag=True, help="The recipe and the result for each key, as JSON; no file is written."
)
@click.pass_obj
def command(obj: CommandContext, file: Path, tool: str | None, output: Path | None, all_: bool, as_json: bool) -> None:
    """Make a recipe of another tool's FILE, and report the result for each of its keys.

    FILE is a YAML or JSON file, a file with a command line, or a Python script or notebook, which is read and never
    run.
    """
    keys, guessed = files.read(file)
    chosen = tool or guessed
    if not chosen and {"model", "data"} <= keys.keys():
        raise UserError(f"{file} is a recipe of finetooth already", action=f"ft run {file}")
    if not chosen:
        raise UserError(
            f"{file}: the tool of this configuration is unknown", action=f"say --from {'|'.join(files.TOOLS)}"
        )
    if tool and guessed and tool != guessed:
        raise UserError(f"{file} looks like a configuration of {guessed}, not {tool}", action=f"say --from {guessed}")
    account = read_tool(keys, chosen, file)
    recipe = tidied(account.recipe)
    try:
        with working(f"trying the recipe made of {file}"):
            obj.load(recipe)
            packing.fit(account, lambda rows: obj.planned(obj.load(rows))[1])
        recipe, problem = tidied(account.recipe), ""
    except UserError as error:
        problem = str(error)
    if as_json:
        rows, doubt = [_row(line) for line in account], uncompared(account, chosen)
        click.echo(json.dumps({"tool": chosen, "recipe": recipe, "keys": rows, "problem": problem, "doubt": doubt}))
        return
    place = output or Path("recipe.yaml")
    if place.exists():
        raise UserError(f"--output: {place} exists", action="name another file; nothing was changed")
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(as_yaml(account, chosen, file.name), encoding="utf-8")
    _tell(account, all_)
    took, there = account.shares()
    click.echo(f"\n{took} of {there} keys of {chosen} were taken; the recipe is {place}")
    if doubt := uncompared(account, chosen):
        click.echo(f"{doubt}: look at them with ft data preview {place}")
    click.echo(f"The recipe cannot run yet: {problem}" if problem else f"Next: ft check {place}")


def uncompared(account: Account, tool: str) -> str:
    """What is to be looked at, since nothing has held it against the tool; empty where something has, or where all
    tokens train, or only those that the model writes itself."""
    method = account.recipe.get("method")
    name = method.get("name") if isinstance(method, dict) else method
    if account.compared or name in ALL_OR_OWN:
        return ""
    return f"For rows like these, nobody has compared the trained tokens with those of {tool}"


def read_tool(keys: Any, tool: str, file: Path | None = None) -> Account:
    """What happened to a tool's keys.

    Args:
        file: where they stood; LLaMA-Factory's list of datasets, and rows of others, are looked for in its folder.

    Raises:
        UserError: the value of a key cannot be read, such as a number where the tool has a list.
    """
    if tool in NESTED:
        keys = flattened(keys)
    try:
        return _read(keys, tool, file)
    except FinetoothError:
        raise
    except Exception as error:  # the keys without which the others can be read
        bad = [key for key in keys if _is_read({name: keys[name] for name in keys if name != key}, tool, file)]
        if not bad:
            raise
        shown = " or ".join(f"{key}: {shortened(keys[key], 40)}" for key in bad)
        raise UserError(
            f"{file or tool}: {shown} cannot be read", action="correct the value, or leave it out"
        ) from error


def _is_read(keys: Mapping[str, Any], tool: str, file: Path | None) -> bool:
    try:
        _read(keys, tool, file)
    except Exception:
        return False
    return True


def _read(keys: Mapping[str, Any], tool: str, file: Path | None) -> Account:
    if tool == "torchtune":
        keys = torchtune.resolved(keys)
    account = Account(keys, None if file is None else file.resolve().parent)
    beside = {"llamafactory": llamafactory.read, "trl": trl.read, "mud-puppy": mudpuppy.read, "unsloth": unsloth.read}
    if tool in beside:
        beside[tool](account, account.folder)
    else:
        files.READERS[tool].read(account)
    return account


def _tell(account: Account, all_: bool) -> None:
    for outcome, heading in HEADINGS.items():
        lines = [line for line in account if line.outcome == outcome]
        if not lines or (outcome in ("taken", "no effect") and not all_):
            continue
        click.echo(f"{heading}:")
        for line in lines:
            setting = f" -> {line.setting}" if line.setting else ""
            click.echo(
                f"  {line.key}: {shortened(line.value, 40)}{setting}" + (f"  ({line.note})" if line.note else "")
            )


def _row(line: Line) -> dict[str, Any]:
    return {"key": line.key, "value": line.value, "outcome": line.outcome, "setting": line.setting, "note": line.note}
