"""Distribution names, versions and requirements.

The start of every command checks for every plugin that its requirement on finetooth-hooks admits this contract.
Importing `packaging` takes longer than all these checks, so simple requirements (`>=1,<2`) are compared as tuples, and
only others use `packaging`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

from finetooth_hooks.errors import install_command

_PLAIN_CLAUSE = re.compile(r"\s*(>=|<=|==|!=|<|>)\s*(\d+(?:\.\d+)*)\s*$")
_PLAIN_VERSION = re.compile(r"\d+(?:\.\d+)*$")
_REQUIREMENT = re.compile(r"\s*([A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)\s*(?:\[[^\]]*\])?\s*([^;]*?)\s*(?:;(.*))?$")


@cache
def canonical(name: str) -> str:
    """The name by which package indexes compare distributions (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


@dataclass(frozen=True)
class Requirement:
    """One requirement of a distribution.

    Attributes:
        name: canonical name of the required distribution.
        specifier: allowed versions, `>=1,<2`; empty for any.
        text: the declaration.
    """

    name: str
    specifier: str
    text: str


@cache
def parse(text: str) -> Requirement | None:
    """A requirement in its parts, or None if it is malformed or not for this environment (PEP 508).

    Extras of the distribution itself (`; extra == "x"`) count as not for this environment.
    """
    match = _REQUIREMENT.match(text)
    if match is None:
        return None
    name, specifier, marker = match.groups()
    specifier = specifier.strip("() ")
    if marker is not None and not _applies(marker):
        return None
    if specifier and not all(_PLAIN_CLAUSE.match(clause) for clause in specifier.split(",")):
        from packaging.specifiers import InvalidSpecifier, SpecifierSet

        try:
            SpecifierSet(specifier)
        except InvalidSpecifier:
            return None
    return Requirement(canonical(name), specifier, text.split(";")[0].strip())


def on(name: str, requires: Iterable[str]) -> list[Requirement]:
    """The requirements on one distribution; does not parse the others."""
    texts = (text for text in requires if (match := _REQUIREMENT.match(text)) and canonical(match[1]) == name)
    return [requirement for requirement in map(parse, texts) if requirement is not None]


def _applies(marker: str) -> bool:
    from packaging.markers import InvalidMarker, Marker

    try:
        return Marker(marker).evaluate({"extra": ""})
    except InvalidMarker:
        return False


@cache
def admits(specifier: str, version: str) -> bool:
    """Whether `version` is among the versions `specifier` allows; as in `packaging`, pre-releases included."""
    clauses = specifier.split(",") if specifier.strip() else []
    matches = [_PLAIN_CLAUSE.match(clause) for clause in clauses]
    if not _PLAIN_VERSION.match(version) or not all(matches):
        from packaging.specifiers import SpecifierSet

        return SpecifierSet(specifier).contains(version, prereleases=True)
    return all(_compare(match[1], version, match[2]) for match in matches if match is not None)


def _compare(operator: str, version: str, bound: str) -> bool:
    left, right = (tuple(int(part) for part in text.split(".")) for text in (version, bound))
    length = max(len(left), len(right))
    left, right = left + (0,) * (length - len(left)), right + (0,) * (length - len(right))
    return {
        ">=": left >= right,
        "<=": left <= right,
        "<": left < right,
        ">": left > right,
        "==": left == right,
        "!=": left != right,
    }[operator]


@dataclass(frozen=True)
class Unmet:
    """A declared requirement that this environment does not meet; `installed` is None if the distribution is
    missing."""

    requirement: Requirement
    installed: str | None

    def __str__(self) -> str:
        if self.installed is None:
            return f"{self.requirement.text} (not installed)"
        return f"{self.requirement.text} ({self.installed} is installed)"


def unmet(requires: Iterable[str]) -> tuple[Unmet, ...]:
    """The declared requirements that are missing or have a wrong version. Slow: called only after a failure, and by `ft
    plugins doctor`."""
    from importlib.metadata import distributions

    lacking = []
    for requirement in filter(None, map(parse, requires)):
        installed = next((dist.version for dist in distributions(name=requirement.name)), None)
        if installed is None or not admits(requirement.specifier, installed):
            lacking.append(Unmet(requirement, installed))
    return tuple(lacking)


def remedy(error: ImportError, distribution: str) -> tuple[str, str]:
    """Missing requirements of a plugin whose import failed (`; not met: ...`), and the command to type; both empty if
    unknown."""
    from importlib.metadata import distributions

    declared = next((dist.requires or [] for dist in distributions(name=distribution)), [])
    if missing := unmet(declared):
        return f"; not met: {', '.join(map(str, missing))}", install_command(*(m.requirement.text for m in missing))
    lacking = (error.name or "").partition(".")[0] if isinstance(error, ModuleNotFoundError) else ""
    for text in declared:
        if (match := _REQUIREMENT.match(text)) and canonical(match[1]) == canonical(lacking):  # of an extra
            return "", install_command(text.split(";")[0].strip())
    return "", f"install what brings {lacking!r}: {install_command('PACKAGE')}" if lacking else ""
