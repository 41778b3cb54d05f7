"""The key of prepared data: SHA-256 over everything that determines them, so that the cache is never stale.

It covers the bytes of every source file (or the source's identity, if the rows are not in files), the options of every
entry involved, the code of their packages and the versions of all dependencies, the tokenizer's content, the model's
config and the limits. It leaves out settings without effect on tokens: the run's folder, its training settings.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import json
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from finetooth_hooks.context import Catalog, Registered
from finetooth_hooks.data.preparation import Limit, Rendering
from finetooth_hooks.errors import DataError, PluginError
from finetooth_hooks.plan import Pick
from finetooth_hooks.protocols import Tokenizer
from finetooth_toolbox.files.file_hashes import FileHashes, file_sha256
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from finetooth_rows.parts import DataParts
from finetooth_rows.picked import PickedSource
from finetooth_rows.reading import SplitRows

AUTO = "auto"
LAYOUT = 3
"""Version of the layout of files in the cache."""
OWN_PACKAGES = ("finetooth_hooks", "finetooth_toolbox", "finetooth_rows", "finetooth_core")


class NoDataKey(Exception):
    """The reason why a key is impossible."""


@dataclass(frozen=True)
class DataKey:
    """The key with which the cache finds prepared data.

    Attributes:
        value: 64 hexadecimal digits.
        files: the source files and their SHA-256.
    """

    value: str
    files: Mapping[Path, str]


def data_key(
    parts: DataParts, rows: SplitRows, rendering: Rendering, limit: Limit | None, hashes: FileHashes
) -> DataKey:
    """Returns the key of the prepared rows: a hash of everything that determines them.

    Raises:
        NoDataKey: a source has neither files nor an identity.
        DataError: a source file is missing.
    """
    sources, files = named_sources(rows.sources, hashes)
    model, catalog, processor = parts.model(), parts.builder.catalog, parts.section.processor
    taking_part: list[Registered] = [registered for registered, _ in model.entries.values()]
    taking_part += [picked.registered for picked in (*rows.sources, *rows.formats)]
    relied_on = {name for picked in rows.sources for name in picked.source.relies_on}
    taking_part += [catalog.get("source", name) for name in sorted(relied_on)]
    taking_part += _offering(catalog, rendering.build)
    taking_part += _processor(catalog, processor)
    options = {
        "formats": [[picked.registered.full_name, picked.options] for picked in rows.formats],
        "rendering": [rendering.build, dict(rendering.options)],
        "markup": parts.section.markup,
        "processor": processor,
        **{kind: [registered.full_name, chosen] for kind, (registered, chosen) in model.entries.items()},
    }
    modules = {part.entry.build for part in taking_part} | {rendering.build, *OWN_PACKAGES}
    relied_versions = versions(part.distribution for part in taking_part)
    content = {
        "layout": LAYOUT,
        "python": list(sys.version_info[:3]),
        "sources": sources,
        "options": options,
        "option_files": option_files(options, hashes),
        "first": rows.count,
        "choice": None if rows.selection is None else rows.selection.choice.as_json(),
        "held_out": rows.held_out,
        "limit": None if limit is None else asdict(limit),
        "model": dict(model.config),
        "tokenizer": _tokenizer(model.tokenizer),
        "code": codes({module.partition(".")[0].partition(":")[0] for module in modules}, relied_versions),
        "versions": relied_versions,
    }
    text = json.dumps(content, sort_keys=True, default=str)
    return DataKey(hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest(), files)


def named_sources(picked_sources: Sequence[PickedSource], hashes: FileHashes) -> tuple[list[Any], dict[Path, str]]:
    """Sources with their options and files or identities; and these files with hashes.

    Raises:
        NoDataKey: a source has neither files nor an identity.
        DataError: a source file is missing.
    """
    files: dict[Path, str] = {}
    sources: list[Any] = []
    for picked in picked_sources:
        made_of = picked.files()
        named: dict[str, str] | str | None = None
        if made_of is not None:
            digests = {path: hashes.sha256(path) for path in made_of}
            files |= digests
            named = {path.as_posix(): digest for path, digest in digests.items()}
        else:
            named = picked.source.identity()
        if named is None:
            raise NoDataKey(f"{picked.registered.full_name} does not say what its rows are made of")
        sources.append([picked.registered.full_name, picked.options, named])
    return sources, files


def with_media(value: str, files: Sequence[str], hashes: FileHashes) -> str:
    """The key of rows with images, sounds and videos in files, which changes with each of these files.

    Args:
        value: the key of everything else.
        files: the media files that an earlier preparation under that key found; empty without one.
    """
    if not files:
        return value
    try:
        return media_key(value, {name: hashes.sha256(Path(name)) for name in files})
    except DataError:
        return ""  # a file is missing: nothing was prepared from the present files


def media_key(value: str, digests: Mapping[str, str]) -> str:
    """See `with_media`; `digests` of the files."""
    return hashlib.sha256(json.dumps([value, sorted(digests.items())]).encode()).hexdigest()


def _offering(catalog: Catalog, build: str) -> list[Registered]:
    """Entries of a builder's package."""
    package = build.partition(".")[0]
    kinds = ("method", "evaluator")
    return [r for kind in kinds for r in catalog.all(kind) if r.entry.build.partition(".")[0] == package]


def _processor(catalog: Catalog, pick: Pick) -> list[Registered]:
    """The processor for images and sounds; whether rows have any is unknown before they are read."""
    name = pick if isinstance(pick, str) else pick.get("name", AUTO)
    try:
        if name == AUTO:
            return [catalog.default("processor", setting="data.processor")]
        return [catalog.get("processor", name, setting="data.processor")]
    except PluginError:
        return []  # an image raises the error later


def option_files(value: Any, hashes: FileHashes) -> dict[str, str]:
    """Hashes of every file that an option names."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list):
        return {name: digest for item in value for name, digest in option_files(item, hashes).items()}
    if not isinstance(value, str) or not value or "\0" in value or len(value) > 1000:
        return {}
    path = Path(value)
    try:
        return {value: hashes.sha256(path)} if path.is_file() else {}
    except OSError:  # a name that no file can have
        return {}


def _tokenizer(tokenizer: Tokenizer) -> str:
    """SHA-256 over the files that the tokenizer writes."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save(Path(folder))
        return tree_hash(Path(folder), "*")


def codes(packages: Iterable[str], distributions: Iterable[str]) -> dict[str, str]:
    """Hashes of the code of packages, and of editable distributions, as in a clone, whose versions do not identify
    their code.

    Args:
        packages: module names of packages.
        distributions: names of distributions, as from `versions`.
    """
    edited = {name.replace("-", "_") for name in distributions if _is_edited(name)}
    return {name: code_hash(name) for name in sorted({*packages, *edited})}


def _is_edited(distribution: str) -> bool:
    """Whether it is imported from another folder than the one it is installed in."""
    file = _file(distribution.replace("-", "_"))
    installed = Path(str(importlib.metadata.distribution(distribution).locate_file("")))
    return file is not None and not file.resolve().is_relative_to(installed.resolve())


def code_hash(package: str) -> str:
    """SHA-256 over the source files of a package or module; imported or not."""
    path = _file(package)
    if path is None:
        return ""
    return tree_hash(path.parent, "*.py") if path.name == "__init__.py" else file_sha256(path)


def _file(package: str) -> Path | None:
    """The file that an import runs; None if it is missing."""
    file = getattr(sys.modules.get(package), "__file__", None)
    if file is None and package not in sys.modules and (spec := importlib.util.find_spec(package)) is not None:
        file = spec.origin
    return None if file is None or not Path(file).is_file() else Path(file)


def tree_hash(folder: Path, pattern: str) -> str:
    """SHA-256 over the names and contents of the files below a folder."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob(pattern) if path.is_file()):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(folder).as_posix()}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()


def versions(distributions: Iterable[str]) -> dict[str, str]:
    """Versions of distributions and of everything they require, directly or not; extras are left out."""
    installed: dict[str, str] = {}
    open_ = list(distributions)
    while open_:
        name = canonicalize_name(open_.pop())
        if name in installed:
            continue
        try:
            distribution = importlib.metadata.distribution(name)
        except (importlib.metadata.PackageNotFoundError, ValueError):
            continue  # a local file, or not installed
        metadata = distribution.metadata
        installed[name] = metadata["Version"]
        for text in metadata.get_all("Requires-Dist") or ():
            try:
                requirement = Requirement(text)
            except InvalidRequirement:
                continue
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                open_.append(requirement.name)
    return installed
