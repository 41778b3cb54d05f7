"""The rooms hold: who imports whom, what core may know, what a start may load."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ("torch", "transformers", "datasets", "mlx", "pydantic", "numpy", "peft")

WHOLE = {
    "adapters": "a command, an engine's capability, and what a chat holds beside its model",
    "auto": "the recipe's word for a choice left to the plan",
    "chat": "what other tools call otherwise, and the core suggests",
    "checkpoint": "a section of the recipe",
    "context": "a parameter of builders",
    "data": "a section of the recipe",
    "completion": "what a row has behind its prompt",
    "export": "a section of the recipe, and its folder in the run folder",
    "eval": "a split of the data, and the beginning of a metric's name",
    "schema": "a field of what samples under a JSON schema",
    "device": "a tier of stores",
    "disk": "a tier of stores",
    "engine": "what trains, a part of every run",
    "environment": "a kind of entry, and a field of manifests",
    "host": "a tier of stores",
    "registry": "where versions are kept, whatever keeps them",
    "loss": "a kind of entry, and the metric of every step",
    "model": "a section of the recipe",
    "profile": "a section of the recipe, its folder in the run folder, and an engine's capability",
    "reference": "a role beside the policy, and how a recipe names a model",
    "remote": "a tier of stores",
    "reward": "a kind of entry",
    "rollouts": "a part of the report of a step",
    "runs": "the folder in which runs are",
    "steps": "a setting, and what every run counts",
    "text": "a word of the YAML reader's own",
}
"""Entry names that core may hold as a whole string, and why."""

WORDS = {
    "safetensors",  # a format of files
    *WHOLE,
    "calls",
    "chat",
    "came",
    "console",
    "constant",
    "context",
    "doctor",
    "finite",
    "freeze",
    "full",
    "import",
    "instruction",
    "jsonl",  # the ending of a file
    "keys",
    "linear",
    "lion",
    "merge",
    "report",
    "sweep",
    "s3",  # the beginning of a URL
    "score",
    "serve",
    "tasks",
    "torch",  # the requirement in the template of an optimizer
    "transformers",
    "verify",
    "watch",
}
"""Entry names that are words, and may stand inside a longer string of core."""

DEVICES = {"cpu", "cuda"}
"""Types of devices, as frameworks call them: what an attention or a kernel declares, in a template too."""


def run_python(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, cwd=cwd, check=False)


def test_import_rules_hold(root, tmp_path):
    rules = tmp_path / "rules.ini"
    assert run_python("tools/make_importlinter.py", str(rules), cwd=root).returncode == 0
    done = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache", "--config", rules],
        capture_output=True,
        text=True,
        cwd=root,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert "0 broken" in done.stdout


def test_picture_of_the_rooms_is_up_to_date(root):
    """It is drawn only where no room imports itself by a detour: a circle is an error of the script."""
    done = run_python("tools/make_rooms.py", "--check", cwd=root)
    assert done.returncode == 0, done.stderr or "run python tools/make_rooms.py"


def test_index_is_up_to_date(root):
    done = run_python("tools/make_index.py", "--check", cwd=root)
    assert done.returncode == 0, done.stderr


# --- core names no plugin ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def entry_names(root) -> set[str]:
    index = json.loads((root / "core/kernel/src/finetooth_core/index.json").read_text(encoding="utf-8"))
    return {name for kind in index.values() for name in kind}


def test_core_names_no_distribution(root, workspace):
    names = {p.name for p in workspace if p.is_plugin} | {m.name for p in workspace if p.is_plugin for m in p.modules}
    pattern = re.compile(rf"(?<![\w-])({'|'.join(sorted(names))})(?![\w-])")
    found = [f"{place}: {text!r}" for place, text in core_strings(root) if pattern.search(text)]
    assert not found


def test_core_names_no_entry(root, entry_names):
    found = [f"{place}: {text!r}" for place, text in core_strings(root) if named(text, entry_names)]
    assert not found


def test_templates_of_new_plugins_name_no_entry(root, entry_names):
    """A new plugin begins with entries that are installed, whatever their names."""
    for file in (root / "plugins/commands/authoring/src/finetooth_authoring/templates").rglob("*.tmpl"):
        words = set(re.findall(r"[\"']([\w-]+)[\"']", file.read_text(encoding="utf-8")))
        assert not words & (entry_names - WORDS - DEVICES), f"{file.name}: {words & entry_names}"


@pytest.mark.parametrize("text", ["sft", "no loss 'cross_entropy'", "pick lora"])
def test_a_name_would_be_found(text):
    assert named(text, {"sft", "cross_entropy", "lora"})


def named(text: str, names: set[str]) -> bool:
    """The string is an entry's name, or one that is no word stands in it."""
    if text in names:
        return text not in WHOLE
    return bool(set(re.findall(r"[\w-]+", text)) & (names - WORDS))


def core_strings(root: Path):
    """Every string of core that is no docstring, with its place."""
    for file in sorted((root / "core/kernel/src").rglob("*.py")):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        blocks = [b for n in ast.walk(tree) if isinstance(b := getattr(n, "body", None), list)]
        docstrings = {id(part.value) for block in blocks for part in block if isinstance(part, ast.Expr)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
                yield f"{file.relative_to(root)}:{node.lineno}", node.value


# --- a start is light -------------------------------------------------------------------------------------------------


def test_plugins_import_nothing_heavy(workspace, root):
    """All plugins in one fresh process: what any of them loads is there afterwards."""
    modules = [f"{module.name}.plugin" for p in workspace if p.is_plugin for module in p.modules]
    sources = [str(p.folder / "src") for p in workspace]
    assert loaded(f"import sys; sys.path[:0] = {sources!r}", *modules, root=root) == []


def test_finetooth_imports_nothing_heavy(root):
    assert loaded("", "finetooth", root=root) == []


@pytest.mark.parametrize("command", [["--help"], ["plugins", "list"], ["--version"]])
def test_commands_import_nothing_heavy(command, root):
    program = (
        "import contextlib, io\n"
        "from finetooth_core.cli import main\n"
        "with contextlib.redirect_stdout(io.StringIO()):\n"
        f"    assert main({command!r}) == 0"
    )
    assert loaded(program, root=root) == []


def test_the_schema_needs_no_framework(root):
    """The options of everything that is installed; what it builds is not looked at."""
    program = (
        "import contextlib, io, json\n"
        "from finetooth_core.cli import main\n"
        "with contextlib.redirect_stdout(io.StringIO()) as printed:\n"
        "    assert main(['schema']) == 0\n"
        "assert json.loads(printed.getvalue())['properties']"
    )
    assert set(loaded(program, root=root)) <= {"numpy", "pydantic"}


def test_a_heavy_import_would_be_found(root):
    assert "numpy" in loaded("", "numpy", root=root)


def loaded(code: str, *modules: str, root: Path) -> list[str]:
    """Which heavy packages a fresh process holds after the code and the imports."""
    imports = [f"import {module}" for module in modules]
    report = f"import sys\nprint(sorted(set({HEAVY}) & sys.modules.keys()))"
    program = "\n".join([code, *imports, report])
    done = run_python("-c", program, cwd=root)
    assert done.returncode == 0, done.stderr
    found: list[str] = ast.literal_eval(done.stdout.splitlines()[-1])
    return found
