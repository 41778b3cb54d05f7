"""The tables of a registry: migrated from their first version, the same in SQLite and PostgreSQL, fast when full."""

from __future__ import annotations

import json
import secrets
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from click.testing import CliRunner
from finetooth_hooks import UserError, Verdict
from finetooth_registry import records
from finetooth_registry.command import registry as command
from finetooth_registry.registry import Registry
from finetooth_registry.tables import METADATA
from finetooth_registry.verifying import verify_version
from finetooth_toolbox.files.manifests import sha256_of
from registry_place import Place

FIRST = Path(__file__).parent / "first_version.json"
ABOUT = {"base_digest": "b", "recipe_sha256": "r", "data": {"train": "d"}, "classification": {"customer_data": False}}


@pytest.fixture
def first(tmp_path: Path) -> Path:
    """The folder of a registry as the first version wrote it."""
    folder = tmp_path / "first"
    folder.mkdir()
    (folder / "policy.yaml").write_text("channels: {production: {gates: []}}")
    kept = json.loads(FIRST.read_text(encoding="utf-8"))
    for name, content in kept["blobs"].items():
        place = folder / "blobs" / name[:2]
        place.mkdir(parents=True, exist_ok=True)
        (place / name).write_text(content, encoding="utf-8")
    with sqlite3.connect(folder / "registry.db") as database:
        database.executescript("\n".join(kept["sql"]))
    database.close()
    return folder


def differs(registry: Registry) -> list[Any]:
    with registry.reading() as connection:
        found = compare_metadata(MigrationContext.configure(connection), METADATA)
        return [change for change in found if "alembic_version" not in str(change)]


def test_a_registry_of_the_first_version_is_migrated_and_verifies(first: Path) -> None:
    registry = Registry(first)
    assert differs(registry) == []
    assert registry.version("bot@production").number == 1
    assert registry.metrics(registry.version("bot@v0"))[0] == {"eval/loss": 2.0, "exact/accuracy": 0.5}
    for version in registry.versions():
        assert all(link.holds for link in verify_version(registry, version))
    assert [event.kind for event in registry.events("bot")].count("decided") == 2
    assert registry.roll_back("bot", "production", "test").number == 0
    assert Registry(first).check_log() == len(registry.events())


def test_the_version_behind_an_artifact_is_looked_up_and_not_searched(place: Place, tmp_path: Path) -> None:
    """Also where it was registered before versions were indexed by it, and where a record is damaged."""
    for content in ("one", "two", "three"):
        assert place.add(content).exit_code == 0
    sought = sha256_of(tmp_path / "run-1/artifact/manifest.json")
    new = [version.called for version in place.registry.versions(artifact=sought)]
    with sqlite3.connect(place.folder / "registry.db") as database:
        database.execute("DROP INDEX versions_by_artifact")
        database.execute("ALTER TABLE versions DROP COLUMN artifact")
        database.execute("UPDATE alembic_version SET version_num = '0003'")
    database.close()
    damaged = place.folder / "blobs" / new_record(place.folder)
    damaged.chmod(0o600)
    damaged.write_text("{}")
    registry = place.registry
    assert differs(registry) == []
    assert new == [version.called for version in registry.versions(artifact=sought)] == ["bot@v1"]
    assert registry.versions("other", artifact=sought) == []
    with registry.reading() as connection:
        plan = connection.exec_driver_sql("EXPLAIN QUERY PLAN SELECT * FROM versions WHERE artifact = 'a'").all()
    assert "USING INDEX versions_by_artifact" in str(plan)


def new_record(folder: Path) -> str:
    """The place of the newest version's record in the blobs."""
    database = sqlite3.connect(folder / "registry.db")
    try:
        ((sha256,),) = database.execute("SELECT record FROM versions WHERE number = 2").fetchall()
    finally:
        database.close()
    return f"{sha256[:2]}/{sha256}"


def test_a_migration_that_is_cut_short_leaves_the_tables_as_they_were(
    first: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from alembic import op

    def broken(*given: Any, **named: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(op, "create_index", broken)
        with pytest.raises(KeyboardInterrupt):
            Registry(first)
    assert "model" not in columns(first, "events")
    assert differs(Registry(first)) == []


def columns(folder: Path, table: str) -> list[str]:
    database = sqlite3.connect(folder / "registry.db")
    try:
        return [row[1] for row in database.execute(f"PRAGMA table_info({table})")]
    finally:
        database.close()


def test_a_new_registry_has_the_tables_that_the_code_expects(tmp_path: Path) -> None:
    assert differs(Registry.create(tmp_path / "new")) == []


def test_a_registry_of_a_later_finetooth_is_left_alone(first: Path) -> None:
    Registry(first)
    with sqlite3.connect(first / "registry.db") as database:
        database.execute("UPDATE alembic_version SET version_num = '9999'")
    database.close()
    with pytest.raises(UserError, match="later finetooth"):
        Registry(first)


def test_an_emptied_database_is_not_taken_for_a_new_one(first: Path) -> None:
    (first / "registry.db").write_bytes(b"")
    with pytest.raises(UserError, match="is empty"):
        Registry(first)


def test_an_event_that_was_put_to_another_model_is_named(first: Path) -> None:
    registry = Registry(first)
    with sqlite3.connect(first / "registry.db") as database:
        database.execute("UPDATE events SET model = 'other' WHERE kind = 'decided'")
    database.close()
    with pytest.raises(UserError, match="an event of bot"):
        registry.checked_events("bot")


def test_a_log_that_was_checked_is_checked_again_after_another_process_wrote(tmp_path: Path) -> None:
    registry = Registry.create(tmp_path / "new")
    registry.trust("a", records.make_key(tmp_path / "a.pem"))
    registry.trust("b", records.make_key(tmp_path / "b.pem"))
    assert registry.check_log() == 2
    registry.trust("c", records.make_key(tmp_path / "c.pem"))
    assert registry.check_log() == 3
    with sqlite3.connect(tmp_path / "new/registry.db") as database:
        database.execute("UPDATE events SET at = 'never' WHERE sequence = 1")
    database.close()
    with pytest.raises(UserError, match="changed at event 1"):
        registry.check_log()


def test_it_is_the_same_on_postgresql(postgres: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"registry_{secrets.token_hex(4)}"
    postgres.execute(f"CREATE DATABASE {name}")
    monkeypatch.setenv("FT_TEST_PG", postgres.password)
    address = f"{postgres.url.rpartition('/')[0]}/{name}"
    made = CliRunner().invoke(command, ["init", str(tmp_path / "far"), "--database", address])
    assert made.exit_code == 0, made.exception
    assert postgres.password not in (tmp_path / "far/database.url").read_text()
    kinds = []
    for folder in (tmp_path / "far", Registry.create(tmp_path / "near").folder):
        registry = Registry(folder)
        registry.trust("ci", records.make_key(tmp_path / f"{folder.name}.pem"))
        signer = records.load_signer(tmp_path / f"{folder.name}.pem")
        for number in range(3):
            (tmp_path / "w").write_text(str(number))
            registry.add("bot", {"weights": tmp_path / "w"}, ABOUT, signer, metrics={"loss": 0.1 + number})
        first, second, third = registry.versions("bot")
        registry.measure(first, {"loss": 3.0}, {"exact": [{"id": "1", "score": 1.0}]})
        for version in (first, second):
            registry.decide(
                version, "production", {"g": Verdict(True, "good")}, registry.in_channel("bot", "production")
            )
        registry.revert(third, "worse")
        assert registry.roll_back("bot", "production", "worse").number == 0
        assert [registry.watched(first, "production", {"loss": 1.0}, {}) for _ in range(3)] == [1, 2, 3]
        assert registry.metrics(first)[0] == {"loss": 3.0}
        assert [one.called for one in registry.versions(newest=2)] == ["bot@v1", "bot@v2"]
        assert [one.called for one in registry.released()] == ["bot@v0"]
        assert all(link.holds for link in verify_version(registry, registry.version("bot@production")))
        assert differs(registry) == []
        kinds.append([event.kind for event in registry.events()])
        registry.close()
    assert kinds[0] == kinds[1]


def test_each_tenant_has_a_schema_of_its_own_on_postgresql(
    postgres: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"registry_{secrets.token_hex(4)}"
    postgres.execute(f"CREATE DATABASE {name}")
    monkeypatch.setenv("FT_TEST_PG", postgres.password)
    whole = Registry.create(tmp_path / "far", f"{postgres.url.rpartition('/')[0]}/{name}")
    (tmp_path / "w").write_text("w")
    for tenant in ("one", "two"):
        folder = tmp_path / "far/tenants" / tenant
        registry = Registry.create(folder)
        assert differs(registry) == [] and registry.policy == whole.policy
        assert postgres.password not in (folder / "database.url").read_text()
        registry.add("bot", {"weights": tmp_path / "w"}, ABOUT, None, metrics={"loss": 1.0})
        registry.close()
        again = Registry(folder)
        assert [one.called for one in again.versions()] == ["bot@v0"]
        again.close()
    assert whole.versions() == []
    whole.close()


def test_a_registry_whose_making_was_cut_short_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from finetooth_registry import schema

    Registry.create(tmp_path / "whole")
    with monkeypatch.context() as patched:
        patched.setattr(schema, "migrate", lambda database: database.connect().exec_driver_sql("SELEC"))
        with pytest.raises(UserError):
            Registry.create(tmp_path / "whole/tenants/one")
    assert list((tmp_path / "whole/tenants/one").iterdir())
    assert Registry.create(tmp_path / "whole/tenants/one").versions() == []
