"""Requirements agree with `packaging`, on which the field agrees."""

from __future__ import annotations

import sys
from importlib.metadata import distributions, entry_points
from pathlib import Path
from typing import Any

import pytest
from finetooth_core.plugins import versions
from finetooth_core.plugins.distributions import GROUP, discover
from finetooth_hooks import install_command
from hypothesis import given
from hypothesis import strategies as st
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

plain = st.lists(st.integers(0, 3), min_size=1, max_size=4).map(lambda parts: ".".join(map(str, parts)))
operators = st.sampled_from([">=", "<=", "==", "!=", "<", ">", "~="])
clauses = st.tuples(operators, plain).map("".join).filter(lambda c: not c.startswith("~=") or "." in c)


@given(st.lists(clauses, max_size=3), plain)
def test_admits_what_packaging_admits(parts: list[str], version: str) -> None:
    specifier = ",".join(parts)
    assert versions.admits(specifier, version) == SpecifierSet(specifier).contains(version, prereleases=True)


@pytest.mark.parametrize(
    ("specifier", "version", "expected"),
    [
        (">=1,<2", "1.0.0", True),
        (">=1,<2", "2.0.0", False),
        ("==1.*", "1.4", True),
        (">=1", "2.0rc1", True),
        ("", "3", True),
    ],
)
def test_admits_beyond_plain_versions(specifier: str, version: str, expected: bool) -> None:
    assert versions.admits(specifier, version) is expected


@given(st.from_regex(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,8}[A-Za-z0-9])?", fullmatch=True))
def test_canonical_name_is_pep_503(name: str) -> None:
    assert versions.canonical(name) == canonicalize_name(name)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("finetooth-hooks<2,>=1", ("finetooth-hooks", "<2,>=1")),
        ("Finetooth_Hooks (>=1)", ("finetooth-hooks", ">=1")),
        ("torch", ("torch", "")),
        ("x[fast]~=1.2", ("x", "~=1.2")),
        ("x>=1; python_version >= '3'", ("x", ">=1")),
        ("x>=1; python_version < '3'", None),
        ("pytest; extra == 'testing'", None),
        ("x>=banana", None),
        ("./file.py", None),
    ],
)
def test_requirement_parts(text: str, expected: tuple[str, str] | None) -> None:
    parsed = versions.parse(text)
    assert (None if parsed is None else (parsed.name, parsed.specifier)) == expected


def test_unmet_names_what_is_missing_and_what_is_too_old() -> None:
    found = versions.unmet(["no-such-thing>=1", "pluggy>=99", "pluggy", "absent; extra == 'x'"])
    assert [str(item).partition(" (")[0] for item in found] == ["no-such-thing>=1", "pluggy>=99"]
    assert "not installed" in str(found[0])
    assert "is installed" in str(found[1])


@pytest.mark.parametrize(
    ("distribution", "module", "action"),
    [
        ("finetooth-registry", "python_stdnum", ("python-stdnum>=1.20",)),  # an optional one, with a hyphen
        ("acme-lacking", "anything", ("nonesuch-thing>=1",)),  # a declared one that is not there comes first
        ("finetooth-registry", "nonesuch", ("PACKAGE",)),
        ("./local.py", "nonesuch", ("PACKAGE",)),
    ],
)
def test_a_failed_import_is_answered_with_what_to_install(
    site: Any, distribution: str, module: str, action: tuple[str, ...]
) -> None:
    site.add("acme-lacking", requires=["nonesuch-thing>=1"])
    lacks, said = versions.remedy(ModuleNotFoundError(name=f"{module}.part"), distribution)
    assert said.endswith(install_command(*action)) and ("nonesuch-thing" in lacks) == (distribution == "acme-lacking")
    assert versions.remedy(ImportError("no symbol"), "finetooth-registry") == ("", "")


def test_discovery_agrees_with_importlib_metadata() -> None:
    """What importlib.metadata finds in this environment, found faster."""
    expected: dict[str, list[str]] = {}
    for point in entry_points(group=GROUP):
        assert point.dist is not None
        expected.setdefault(canonicalize_name(point.dist.name), []).append(point.value)
    found = {item.distribution: [value for _, value in item.references] for item in discover()}
    assert found == {name: sorted(values) for name, values in expected.items()}
    by_name = {canonicalize_name(dist.name): dist for dist in reversed(list(distributions()))}
    for item in discover():
        assert item.version == by_name[item.distribution].version
        assert sorted(item.requires) == sorted(by_name[item.distribution].requires or [])


def test_first_on_the_path_hides_the_second(site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    site.add("acme-twice", version="2.0")
    old = tmp_path / "old"
    (old / "acme_twice-1.0.dist-info").mkdir(parents=True)
    (old / "acme_twice-1.0.dist-info/entry_points.txt").write_text("[finetooth]\nx = gone\n")
    found = {item.distribution: item for item in discover([str(site.folder), str(old), *sys.path])}
    assert found["acme-twice"].version == "2.0"
    assert found["acme-twice"].shadowed == (old / "acme_twice-1.0.dist-info",)
