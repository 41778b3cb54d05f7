"""Every package has what a package of this workspace has."""

import ast
import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement

SHARED = {
    tomllib.loads(path.read_text(encoding="utf-8"))["project"]["name"]
    for path in Path(__file__).parents[2].glob("plugins/shared/*/pyproject.toml")
}
"""Distributions that only plugins share."""


def test_files(package):
    for name in ("pyproject.toml", "README.md", "src", "tests"):
        assert (package.folder / name).exists(), f"{package.place} has no {name}"
    for module in package.modules:
        assert (module / "py.typed").is_file(), f"{module} is not marked as typed"
    assert list(package.folder.glob("tests/**/test_*.py")), f"{package.place} has no test"
    assert not list(package.folder.glob("tests/**/__init__.py")), "tests are no package: pytest imports them by path"


def test_project(package):
    project = package.project
    prefix = "finetooth-contrib-" if package.place.startswith("contrib/") else "finetooth-"
    assert re.fullmatch(rf"{prefix}[a-z0-9]+", package.name)
    assert package.name.replace("-", "_") in [module.name for module in package.modules]
    assert project["requires-python"] == ">=3.11"
    assert project["license"] == "Apache-2.0"
    assert project["readme"] == "README.md"
    assert project["description"].endswith(".")
    text = (package.folder / "README.md").read_text(encoding="utf-8")
    assert text.startswith(f"# {package.name}\n"), "a README begins with the name that pip takes"


def test_versions_are_in_lockstep(package, root):
    own = package.project["version"]
    meta = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    if package.place == "hooks/contract":
        assert f'CONTRACT_VERSION = "{own}"' in (package.modules[0] / "__init__.py").read_text(encoding="utf-8")
    elif not package.place.startswith("contrib/"):
        assert own == meta


def test_plugin_entry_point(plugin):
    (entry_point,) = plugin.project["entry-points"]["finetooth"].values()
    (module,) = plugin.modules
    assert entry_point == f"{module.name}.plugin"
    assert (module / "plugin.py").is_file()
    assert "finetooth-hooks>=2,<3" in plugin.project["dependencies"]


def test_every_package_is_made_for_this_contract(package):
    needed = {one for one in package.project.get("dependencies", ()) if one.startswith("finetooth-hooks")}
    assert needed <= {"finetooth-hooks>=2,<3"}


def test_plugins_depend_on_shared_rooms_only(plugin):
    ours = {re.split(r"[<>=!~\[ ]", d)[0] for d in plugin.project["dependencies"] if d.startswith("finetooth")}
    rooms = ("hooks", "kit", "toolbox", "recipes", "rows", "saving", "steps", "kernels")
    assert ours <= {f"finetooth-{room}" for room in rooms} | SHARED


def test_dependencies_are_ranges(package):
    """Pins are for constraints.txt: a plugin that pins a library fights with every other one."""
    pinned = [d for d in package.project.get("dependencies", []) if "==" in d]
    assert not pinned


def test_meta_distribution_brings_the_base(root, workspace):
    """`pip install finetooth` brings core and every first-party plugin that is no extra; each extra is one of ours."""
    meta = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    first_party = {p.name for p in workspace if p.is_plugin and p.place.startswith("plugins/")}
    version = meta["version"]
    base = [Requirement(text) for text in meta["dependencies"]]
    groups = {name: [*map(Requirement, group)] for name, group in meta["optional-dependencies"].items()}
    bundles = {name for name, group in groups.items() if "finetooth" in {one.name for one in group}}
    extras = [one for name, group in groups.items() if name not in bundles for one in group]
    for bundle in bundles:
        for one in groups[bundle]:
            assert str(one.specifier) == f"=={version}"
            assert one.name in first_party or one.extras <= groups.keys() - bundles | {"rl"}, bundle
    assert {str(one.specifier) for one in [*base, *extras]} == {f"=={version}"}
    of_itself = [one for one in base if one.name == "finetooth"]  # the extras that it brings by itself, by platform
    assert {(*one.extras,) for one in of_itself} == {("torch",), ("mlx",)}
    brought = {one.name for one in base}
    more = [one for one in extras if not (one.extras and one.name in brought)]  # else an extra of a package of the base
    names = [one.name for one in [*base, *more] if one not in of_itself]
    assert len(set(names)) == len(names), "named twice"
    assert set(names) == first_party | {"finetooth-core"}
    assert "finetooth-core" in {one.name for one in base}


def test_the_page_names_every_extra_and_no_other(root):
    extras = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    page = (root / "docs/guides/install.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(?:finetooth)?\[([a-z0-9-]+)\]`", page))
    assert named == set(extras) - {"torch"}, "torch comes by itself"


def test_apple_silicon_gets_no_torch(root, monkeypatch):
    """`pip install finetooth` there, by the markers of all packages: MLX, and nothing that needs torch."""
    monkeypatch.syspath_prepend(str(root / "tools"))
    from check_wheels import closure
    from without_torch import brought

    ours, others = brought()
    assert {"finetooth-mlx", "finetooth-metal", "finetooth-sft", "finetooth-schedules"} <= set(ours)
    assert {"mlx", "mlx-lm", "transformers"} <= set(others)
    assert not {"torch", "peft", "accelerate"} & (set(others) | closure([*others.values()]))


def test_plugins_say_what_they_are(plugin):
    """The docstring of plugin.py is the first thing a reader sees of a plugin."""
    (module,) = plugin.modules
    tree = ast.parse((module / "plugin.py").read_text(encoding="utf-8"))
    assert (ast.get_docstring(tree) or "").strip(), f"{module.name}/plugin.py has no docstring"
