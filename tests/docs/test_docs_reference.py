"""The generated reference is up to date, and every hook is documented and used."""

import ast
import importlib
import re
import subprocess
import sys

import pytest
from finetooth_hooks import specs

HOOKS = (*specs.REGISTRATION_HOOKS, *specs.EVENT_HOOKS)


def test_reference_is_up_to_date(root):
    command = [sys.executable, "tools/make_reference.py", "--check"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_hookspecs_are_complete():
    """Every `ft_*` function of the specs is one of the two kinds, and the other way round."""
    functions = {name for name, value in vars(specs).items() if name.startswith("ft_") and callable(value)}
    assert functions == set(HOOKS)


@pytest.mark.parametrize("hook", HOOKS)
def test_hook_has_a_page_and_an_example(hook, root):
    page = (root / f"docs/hooks/{hook}.md").read_text(encoding="utf-8")
    assert f"def {hook}" in page
    example = page.split("@hookimpl\n", 1)[1].split("```")[0]
    (function,) = ast.parse(example).body
    assert isinstance(function, ast.FunctionDef)
    assert function.name == hook
    known = getattr(specs, hook).__code__.co_varnames[: getattr(specs, hook).__code__.co_argcount]
    assert {argument.arg for argument in function.args.args} <= set(known)


@pytest.mark.parametrize("hook", HOOKS)
def test_hook_is_implemented(hook, root):
    """A hook that nothing implements proves nothing: a first-party plugin, or the guide's file, has it."""
    files = [*root.glob("plugins/*/*/src/*/plugin.py"), *root.glob("docs/guides/**/*.py")]
    assert any(hook in implemented(file.read_text(encoding="utf-8")) for file in files)


def test_no_generated_page_is_larger_than_60_kb(root):
    pages = [page for folder in ("docs/recipe", "docs/hooks") for page in (root / folder).rglob("*.md")]
    assert pages
    assert [page.name for page in pages if page.stat().st_size > 60_000] == []


def test_readme_is_at_most_150_lines(root):
    assert (root / "README.md").read_text(encoding="utf-8").count("\n") <= 150


def test_readme_counts_what_the_mlx_engine_can_do(root):
    mlx, torch = (
        pytest.importorskip("finetooth_mlx.capabilities"),
        importlib.import_module("finetooth_torch.capabilities"),
    )
    assert mlx.CAPABILITIES <= torch.CAPABILITIES
    counts = f"{len(mlx.CAPABILITIES)} of torch's {len(torch.CAPABILITIES)} abilities"
    assert counts in (root / "README.md").read_text(encoding="utf-8")


def test_every_page_is_short_and_its_headings_are_what_it_lists(root):
    """A page for each kind of entry and for each module of the contract; the index names them all."""
    for folder in (root / "docs/recipe", root / "docs/hooks/types"):
        index = (folder / "README.md").read_text(encoding="utf-8")
        pages = [page for page in folder.glob("*.md") if page.name != "README.md"]
        assert pages
        for page in pages:
            assert f"]({page.name})" in index
            text = page.read_text(encoding="utf-8")
            assert text.count("\n") <= 600  # methods share many options
            assert set(re.findall(r"^## (.+)$", text, re.M)) <= set(re.findall(r"`([\w-]+)`", index)), page.name
            assert not re.findall(r"^###", text, re.M), page.name


def implemented(source: str) -> set[str]:
    """Decorated functions of a module."""
    functions = [node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)]
    return {node.name for node in functions if "hookimpl" in map(ast.unparse, node.decorator_list)}
