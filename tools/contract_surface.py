"""Record the public contract, and say what broke since it was recorded.

    python tools/contract_surface.py [--record | --stub]

The record (`hooks/contract/contract.txt`) begins with the contract's number and has a line for each public name:
classes with their bases, fields with type and default, methods and functions with their arguments, and hooks. A line
that is gone or different is a break: the number's first part must rise, and `finetooth_hooks/changes.toml` says in a
line of the new number what authors do. What is only added is no break, except a field without a default and a method
that plugins must write. `--record` is for the one who raises the number; `--stub` writes the stub of the package,
from which type checkers and this tool know the names that the package imports on first use.
"""

from __future__ import annotations

import argparse
import ast
import sys
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "hooks/contract/src/finetooth_hooks"
RECORD = ROOT / "hooks/contract/contract.txt"
STUB = PACKAGE / "__init__.pyi"
GIVEN = {"Catalog", "CommandContext", "Context", "ExportSource", "FaceService", "Opened", "Registered", "Run"}
"""Protocols that finetooth implements and plugins use: a method more breaks nobody."""


def surface(package: Path = PACKAGE) -> dict[str, str]:
    """Every public name of the contract with what it looks like."""
    files = [*sorted(package.rglob("*.py"), key=lambda file: file.stem), *package.glob("__init__.pyi")]
    return {
        f"{file.stem}.{name}": text
        for file in files
        for name, text in _of_module(ast.parse(file.read_text(encoding="utf-8")))
    }


def stub(package: Path = PACKAGE) -> str:
    """What type checkers read of the package: an import of each name in the table of its `__init__`."""
    tree = ast.parse((package / "__init__.py").read_text(encoding="utf-8"))
    (table,) = (
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "_NAMES"
    )
    imports = [
        f"from finetooth_hooks.{module} import {name} as {name}"
        for module, names in table.items()
        for name in sorted(names.split(), key=lambda name: (not name.isupper(), name.lower()))
    ]
    title = '"""Types of the names that `finetooth_hooks` imports on first use; tools/contract_surface.py writes it."""'
    return "\n".join([title, "", *imports, "", "CONTRACT_VERSION: str"]) + "\n"


def _of_module(tree: ast.Module) -> Iterator[tuple[str, str]]:
    listed = _listed(tree)
    for node in tree.body:
        if isinstance(node, ast.ImportFrom):
            yield from ((a.name, f"from {node.module}") for a in node.names if a.asname == a.name)
        if isinstance(node, ast.FunctionDef) and _public(node.name, listed):
            yield node.name, _arguments(node)
        if isinstance(node, ast.ClassDef) and _public(node.name, listed):
            yield node.name, f"class({', '.join(map(ast.unparse, node.bases))})"
            for name, text in _members(node):
                yield f"{node.name}.{name}", text


def _listed(tree: ast.Module) -> set[str]:
    """Names in `__all__`; empty without one."""
    values = (n.value for n in tree.body if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == "__all__")
    return {
        ast.literal_eval(e) for v in values if isinstance(v, ast.List) for e in v.elts if isinstance(e, ast.Constant)
    }


def _public(name: str, listed: set[str]) -> bool:
    return name in listed if listed else not name.startswith("_")


def _members(node: ast.ClassDef) -> Iterator[tuple[str, str]]:
    for member in node.body:
        if isinstance(member, ast.AnnAssign) and isinstance(member.target, ast.Name):
            name, value = member.target.id, f" = {ast.unparse(member.value)}" if member.value else ""
            text = f"{ast.unparse(member.annotation)}{value}"
        elif isinstance(member, ast.FunctionDef):
            name, text = member.name, _arguments(member)
        else:
            continue
        if not name.startswith("_"):
            yield name, text


def _arguments(node: ast.FunctionDef) -> str:
    marks = "".join(f"@{ast.unparse(d)} " for d in node.decorator_list if ast.unparse(d) in ("property", "classmethod"))
    return f"{marks}({ast.unparse(node.args)}) -> {ast.unparse(node.returns) if node.returns else 'None'}"


def breaks(old: Mapping[str, str], new: Mapping[str, str]) -> list[str]:
    """What a plugin written for `old` may stumble over, one line for each name."""
    lines = [f"{name} is gone" for name in old if name not in new]
    lines += [f"{n} was {text}, is {new[n]}" for n, text in old.items() if n in new and not _fits(n, text, new)]
    return lines + [f"{name} is new and must be there" for name in new if name not in old and _required(name, old, new)]


def _fits(name: str, text: str, new: Mapping[str, str]) -> bool:
    """Whether a name is as it was, or only takes more than it did where no plugin implements it."""
    owner = name.rpartition(".")[0]
    given = name.startswith("specs.") or owner.rpartition(".")[2] in GIVEN or "Protocol" not in new.get(owner, "")
    if text == new[name] or not (given and text.startswith("(") and new[name].startswith("(")):
        return text == new[name]
    (before, returned), (after, returns) = _parameters(text), _parameters(new[name])
    more = [default for parameter, default in after.items() if parameter not in before]
    same = returned == returns and all(after.get(parameter) == default for parameter, default in before.items())
    return same and (name.startswith("specs.") or None not in more)


def _parameters(text: str) -> tuple[dict[str, str | None], str]:
    """Parameters, each with its default, and what is returned."""
    node = ast.parse(f"def f{text}: ...").body[0]
    assert isinstance(node, ast.FunctionDef) and node.returns is not None
    a = node.args
    positional = [*a.posonlyargs, *a.args]
    defaults = [*[None] * (len(positional) - len(a.defaults)), *a.defaults, *a.kw_defaults]
    parameters = [*positional, *a.kwonlyargs]
    paired = zip(map(ast.unparse, parameters), defaults, strict=True)
    return {name: default and ast.unparse(default) for name, default in paired}, ast.unparse(node.returns)


def _required(name: str, old: Mapping[str, str], new: Mapping[str, str]) -> bool:
    """Whether a new member of a class must be given or written by plugins that know nothing of it."""
    owner, _, member = name.rpartition(".")
    if owner not in old or owner.rpartition(".")[2] in GIVEN:
        return False
    if not new[name].startswith(("(", "@")):
        return " = " not in new[name]
    own = owner.rpartition(".")[2]
    return "Protocol" in new[owner] and f"bases.{own}Base.{member}" not in new


def recorded() -> tuple[str, dict[str, str]]:
    """The number and the names of the record."""
    number, *lines = RECORD.read_text(encoding="utf-8").splitlines()
    return number, dict(line.split(": ", 1) for line in lines)  # type: ignore[misc]


def problems() -> list[str]:
    """What must be done about the breaks since the record; empty if nothing."""
    then, old = recorded()
    now = tomllib.loads((PACKAGE.parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    broken = breaks(old, surface())
    if broken and now.partition(".")[0] == then.partition(".")[0]:
        higher = f"{int(now.partition('.')[0]) + 1}.0.0"
        return [*broken, f"these break plugins for {then}: keep the old form, or raise the contract to {higher}"]
    changes = tomllib.loads((PACKAGE / "changes.toml").read_text(encoding="utf-8"))["change"]
    told = " ".join(f"{row['text']} {' '.join(row['marks'])}" for row in changes if row["number"] == now)
    untold = [line for line in broken if not any(name in told for name in line.split(" ")[0].split(".")[1:])]
    return [f"{line}: changes.toml has no line of {now} that names it" for line in untold]


def main() -> int:
    """Record the contract, or check it; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", action="store_true")
    parser.add_argument("--stub", action="store_true")
    given = parser.parse_args()
    if given.stub:
        STUB.write_text(stub(), encoding="utf-8")
        return 0
    if given.record:
        project = tomllib.loads((PACKAGE.parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        lines = [project["version"], *(f"{name}: {text}" for name, text in surface().items())]
        RECORD.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return 0
    found = problems()
    print("\n".join(found), file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    raise SystemExit(main())
