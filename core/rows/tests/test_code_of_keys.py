"""The code that prepared data hang on: of packages that are edited where they lie, whatever their versions say."""

from __future__ import annotations

from pathlib import Path

import pytest
from finetooth_rows.storage.key import OWN_PACKAGES, codes, versions


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two distributions, of which `acme_edited` lies elsewhere; the other requires it."""
    site, clone = tmp_path / "site", tmp_path / "clone"
    for name, place, requires in (("acme_plain", site, "Requires-Dist: acme-edited\n"), ("acme_edited", clone, "")):
        (place / name).mkdir(parents=True)
        (place / name / "__init__.py").write_text("")
        (place / name / "masks.py").write_text("WEIGHT = 1\n")
        (site / f"{name}-1.0.dist-info").mkdir()
        (site / f"{name}-1.0.dist-info" / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: 1.0\n{requires}"
        )
    monkeypatch.syspath_prepend(clone)
    monkeypatch.syspath_prepend(site)
    return clone


def test_a_change_of_what_is_edited_is_another_code(installed: Path) -> None:
    """Not imported, and with the version that it had."""
    known = versions(["acme-plain"])
    assert known == {"acme-plain": "1.0", "acme-edited": "1.0"}
    before = codes([], known)
    assert before.keys() == {"acme_edited"}
    (installed / "acme_edited" / "masks.py").write_text("WEIGHT = 2\n")
    assert codes([], known) != before


def test_what_turns_rows_into_tokens_is_covered() -> None:
    """A renderer, and in this workspace all that it is made of; each has a hash."""
    made = codes(OWN_PACKAGES, versions(["finetooth-chatml"]))
    assert {"finetooth_rendering", "finetooth_toolbox", "finetooth_rows", "finetooth_hooks"} <= made.keys()
    assert all(made.values())
