"""`registry:NAME@production` is verified before anything loads it, each time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from finetooth_hooks import Exporter, UserError
from finetooth_hooks.errors import PluginError
from finetooth_registry import records
from finetooth_registry.fetching import run_folder
from finetooth_registry.registry import Registry, files_of
from finetooth_saving.run_folder import check_output, got_back


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    """One signed version of `bot`, trusted and in production."""
    monkeypatch.setenv("FT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("FT_REGISTRY", str(tmp_path / "registry"))
    made = Registry.create(tmp_path / "registry")
    made.trust("ci", records.make_key(tmp_path / "ci.pem"))
    for number in range(2):
        (tmp_path / "weights").write_text(f"weights {number}")
        about = {
            "base_digest": "b",
            "recipe_sha256": "r",
            "data": {"train": "d"},
            "classification": {"customer_data": False},
        }
        signer = records.load_signer(tmp_path / "ci.pem")
        version = made.add("bot", {"artifact/weights": tmp_path / "weights"}, about, signer, metrics={})
    made.decide(version, "production", {}, None)
    return made


def test_a_reference_is_the_folder_of_its_version(registry: Registry) -> None:
    assert (run_folder("bot@v0") / "artifact/weights").read_text() == "weights 0"
    folder = run_folder("bot@production")
    assert folder == run_folder("bot") == run_folder("bot@v1")
    assert folder.name == "bot@v1" and (folder / "artifact/weights").read_text() == "weights 1"


@pytest.mark.parametrize("change", ["write", "add", "remove"])
def test_a_kept_copy_that_was_changed_is_not_used(registry: Registry, change: str) -> None:
    weights = run_folder("bot") / "artifact/weights"
    if change == "write":
        weights.write_text("evil")
    elif change == "add":
        (weights.parent / "more").write_text("evil")
    else:
        weights.unlink()
    again = run_folder("bot") / "artifact"
    assert [(path.name, path.read_text()) for path in again.iterdir()] == [("weights", "weights 1")]


def blob(registry: Registry) -> None:
    record = records.read(registry.record(registry.version("bot")))
    registry.blobs.path(files_of(record)["artifact/weights"]).write_text("evil")


@pytest.mark.parametrize(
    ("tamper", "said"),
    [
        (lambda registry: registry.revoke("ci"), "registry:bot@v1 is not loaded: signature: by no trusted key"),
        (blob, "blob .* was changed"),
        (lambda registry: registry.blobs.path(registry.version("bot").record).write_bytes(b"{}"), "was changed"),
    ],
    ids=["revoked", "blob", "record"],
)
def test_what_cannot_be_verified_is_not_loaded(
    registry: Registry, tamper: Callable[[Registry], None], said: str, tmp_path: Path
) -> None:
    tamper(registry)
    with pytest.raises(UserError, match=said):
        run_folder("bot")
    assert not list((tmp_path / "cache").rglob("weights"))


def test_an_unsigned_version_is_not_loaded_though_its_copy_is_kept(registry: Registry) -> None:
    run_folder("bot")
    registry.revoke("ci")
    with pytest.raises(UserError, match="by no trusted key"):
        run_folder("bot")


class Catalog(SimpleNamespace):
    def all(self, kind: str) -> tuple[Any, ...]:
        return tuple(SimpleNamespace(entry=entry, distribution="acme") for entry in self.entries)

    def get(self, kind: str, name: str) -> Any:
        return next(one for one in self.all(kind) if one.entry.name == name)


def catalog(function: str) -> Any:
    return Catalog(
        entries=[Exporter(name="registry", build="a:b", gets_back=function), Exporter(name="hub", build="a:b")]
    )


def test_only_the_exporter_of_that_name_is_asked(registry: Registry) -> None:
    known = catalog("finetooth_registry.fetching:run_folder")
    assert got_back("registry:bot@v0", known) == str(run_folder("bot@v0"))
    for other in ("hub:bot", "runs/mine", "registry", "package:registry:bot", "C:\\bot"):
        assert got_back(other, known) == other
    with pytest.raises(PluginError, match="exporter 'registry': gets_back"):
        got_back("registry:bot", catalog("finetooth_registry.fetching:nothing"))


def test_what_is_made_of_a_version_needs_a_place(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="registry:bot is kept elsewhere"):
        check_output("registry:bot", None)
    check_output("registry:bot", tmp_path)
    check_output("runs/mine", None)
