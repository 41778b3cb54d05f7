"""`ft plugins new`: a distribution folder that passes its own tests as it stands."""

from __future__ import annotations

import keyword
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from string import Template

from finetooth_hooks import CONTRACT_VERSION, UserError
from finetooth_hooks.context import Catalog
from finetooth_toolbox.text.nearest import nearest
from packaging.utils import canonicalize_name as canonical

TEMPLATES = Path(__file__).with_name("templates")
SUFFIX = ".tmpl"
INSTALLED = "installed_"
"""A placeholder `$installed_loss` stands for the name of the default loss, or of any if none is the default."""

_DISTRIBUTION = re.compile(r"[a-zA-Z][a-zA-Z0-9]*([-_.][a-zA-Z0-9]+)*\Z")


@dataclass(frozen=True)
class Scaffold:
    """What a new plugin of one kind is made of.

    Attributes:
        use: how a recipe or a user reaches it, with `$entry` and `$distribution`.
        module: name of the module that does the work.
        dependencies: what it needs in addition to the contract.
    """

    use: str
    module: str
    dependencies: tuple[str, ...] = ()


ROWS = "finetooth-rows>=0.1,<0.2"
TOOLBOX = "finetooth-toolbox>=0.1,<0.2"
METHODS = "finetooth-methods>=0.1,<0.2"

PYDANTIC = "pydantic>=2.8,<3"
TORCH = "torch>=2.9"
TORCH_PARTS = (TORCH, "finetooth-torchshared>=0.1,<0.2")
TRANSFORMERS = "transformers>=5.0"

SCAFFOLDS: Mapping[str, Scaffold] = {
    "loss": Scaffold("Pick its loss in a recipe: `method: {name: METHOD, loss: $entry}`.", "loss"),
    "reward": Scaffold(
        "Pick its reward where a method or an evaluator takes one: `reward: $entry`, or as an override for the first "
        "evaluator, `evaluate.evaluators.0.reward=$entry`.",
        "reward",
    ),
    "source": Scaffold("Name a file in a recipe: `data: {train: rows.$entry}`.", "source"),
    "format": Scaffold("Its format is detected, or picked: `data: {format: $entry}`.", "format"),
    "loader": Scaffold(
        "Name a folder in a recipe: `model: $entry:FOLDER`.", "loader", (*TORCH_PARTS, TOOLBOX, TRANSFORMERS)
    ),
    "processor": Scaffold(
        "Pick its processor in a recipe: `data: {processor: $entry}`.",
        "processor",
        ("numpy>=1.26", "pillow>=10.1", PYDANTIC),
    ),
    "renderer": Scaffold("Pick its renderer in a recipe: `data: {renderer: $entry}`.", "renderer"),
    "family": Scaffold("Its family is chosen by the model's type, or picked: `model: {family: $entry}`.", "family"),
    "method": Scaffold("Pick its method in a recipe: `method: $entry`.", "method", (ROWS, METHODS)),
    "sampler": Scaffold(
        "Pick its sampler where a method learns from its own answers: `method: {sampler: $entry}`.", "sampler"
    ),
    "environment": Scaffold(
        "Pick its environment where a method learns from its own answers: `method: {environment: $entry}`.",
        "environment",
    ),
    "adapter": Scaffold("Pick its adapter in a recipe: `adapter: $entry`.", "adapter", ("numpy>=1.26", *TORCH_PARTS)),
    "quantizer": Scaffold("Pick its quantizer in a recipe: `quantization: $entry`.", "quantizer", TORCH_PARTS),
    "optimizer": Scaffold("Pick its optimizer in a recipe: `optimizer: $entry`.", "optimizer", (TORCH,)),
    "schedule": Scaffold("Pick its schedule in a recipe: `schedule: $entry`.", "schedule"),
    "backend": Scaffold(
        "Pick its backend in a recipe: `backend: $entry`.",
        "backend",
        ("numpy>=1.26", "safetensors>=0.5", "finetooth-steps>=0.1,<0.2", TORCH),
    ),
    "strategy": Scaffold(
        "Pick its strategy in a recipe: `scale: {strategy: $entry, devices: 2}`.",
        "strategy",
        ("finetooth-steps>=0.1,<0.2", TORCH),
    ),
    "launcher": Scaffold("Pick its launcher in a recipe: `scale: {launcher: $entry, devices: 2}`.", "launcher"),
    "hardware": Scaffold("Its hardware is chosen where it is, or picked: `hardware: $entry`.", "hardware", (TORCH,)),
    "attention": Scaffold(
        "Pick its attention in a recipe: `backend: {name: torch, attention: $entry}`.", "attention", (TORCH,)
    ),
    "kernel": Scaffold("Pick its kernel for an operation: `kernels: {rms_norm: $entry}`.", "kernels", (TORCH,)),
    "evaluator": Scaffold("Pick its evaluator in a recipe: `evaluate: {evaluators: [$entry]}`.", "evaluator", (ROWS,)),
    "tracker": Scaffold("Pick its tracker in a recipe: `trackers: [$entry]`.", "tracker"),
    "store": Scaffold("Name a place in a recipe: `checkpoint: {stores: [$entry:///FOLDER]}`.", "store", (TOOLBOX,)),
    "gate": Scaffold("Pick its gate in a recipe: `checkpoint: {gates: [$entry]}`.", "gate", (PYDANTIC,)),
    "exporter": Scaffold("Export a run with it: `ft export RUN --to $entry`.", "exporter"),
    "face": Scaffold("Start a server with it: `ft serve $entry`.", "face"),
    "release_gate": Scaffold("Name it in a registry's policy: `channels: {production: {gates: [$entry]}}`.", "release"),
    "page": Scaffold("The board links to it in its head: `ft board`.", "page"),
    "command": Scaffold("It brings the command `ft $entry`.", "command", ("click>=8.1",)),
    "events": Scaffold("It watches every run; options: `plugins: [{use: $distribution, options: {...}}]`.", "options"),
}
"""By kind of entry; `events` is a plugin that observes runs."""


def create(
    name: str, kind: str, catalog: Catalog, folder: Path | None = None, values: Mapping[str, str] | None = None
) -> Path:
    """Write the distribution folder of a new plugin.

    Args:
        name: of the distribution, `acme-politeness`.
        kind: a key of `SCAFFOLDS`.
        catalog: entries that the new plugin may begin with, such as the default loss.
        folder: where; default is `./NAME`.
        values: of a family that is read off a model, what `family_values` says of it.

    Returns:
        The folder.

    Raises:
        UserError: the name or the kind will not do, a distribution of the name is installed, or the folder holds
            something.
    """
    if kind not in SCAFFOLDS:
        near = nearest(kind, SCAFFOLDS)
        meant = f"did you mean {near}? " if near else ""
        raise UserError(f"--kind {kind}: no such kind", action=f"{meant}kinds are {', '.join(SCAFFOLDS)}")
    package = canonical(name).replace("-", "_")
    taken = not package.isidentifier() or keyword.iskeyword(package) or package in sys.stdlib_module_names
    if not _DISTRIBUTION.match(name) or taken:
        raise UserError(f"{name!r} cannot name a plugin", action="take letters, digits and '-', as in acme-politeness")
    if _is_installed(name):
        raise UserError(f"{name!r} is the name of an installed distribution", action="take another name")
    target = folder or Path(canonical(name))
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"{target} exists and is not empty", action="choose another --folder")
    for path, text in _files(canonical(name), package, kind, catalog, values or {}):
        file = target / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    return target


def _is_installed(name: str) -> bool:
    """Whether pip would take a new distribution of this name for an installed one, with plugins or without."""
    from importlib import metadata  # here: importing it takes longer than most commands

    try:
        metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def _files(
    distribution: str, package: str, kind: str, catalog: Catalog, values: Mapping[str, str]
) -> Iterator[tuple[str, str]]:
    """Path and text of every file."""
    scaffold, templates = SCAFFOLDS[kind], f"kinds/{kind}{'_of_model' if values else ''}"
    major = int(CONTRACT_VERSION.partition(".")[0])
    dependencies = sorted((f"finetooth-hooks>={major},<{major + 1}", *scaffold.dependencies))
    names = {
        "distribution": distribution,
        "package": package,
        "entry": package,
        "kind": kind,
        "module": scaffold.module,
        **values,
    }
    names["dependencies"] = ", ".join(f'"{dependency}"' for dependency in dependencies)
    names["use"] = Template(scaffold.use).substitute(names)

    def filled(file: str) -> str:
        template = Template((TEMPLATES / f"{file}{SUFFIX}").read_text(encoding="utf-8"))
        for wanted in template.get_identifiers():
            if wanted.startswith(INSTALLED):
                names[wanted] = _installed(catalog, wanted.removeprefix(INSTALLED))
        return template.substitute(names)

    yield "pyproject.toml", filled("plugin/pyproject.toml")
    yield "README.md", filled("plugin/README.md")
    yield ".github/workflows/test.yml", filled("plugin/test.yml")
    yield f"src/{package}/__init__.py", ""
    yield f"src/{package}/py.typed", ""
    yield f"src/{package}/plugin.py", filled(f"{templates}/plugin.py")
    yield f"src/{package}/{scaffold.module}.py", filled(f"{templates}/{scaffold.module}.py")
    yield f"tests/test_{package}_conformance.py", filled("plugin/conformance.py")
    yield f"tests/test_{package}.py", filled(f"{templates}/test.py")


def _installed(catalog: Catalog, kind: str) -> str:
    installed = catalog.all(kind)
    if not installed:
        raise UserError(
            f"the new plugin needs a {kind} to start from, and none is installed", action=f"install a {kind}"
        )
    return next((registered for registered in installed if registered.entry.default), installed[0]).entry.name
