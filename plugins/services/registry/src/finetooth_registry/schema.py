"""A registry's database: its address, and migrations of its tables (Alembic)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

from finetooth_hooks.errors import UserError, install_command
from finetooth_toolbox.text.environment import expand
from sqlalchemy import Connection, Engine, create_engine, inspect, make_url, text
from sqlalchemy.exc import ArgumentError

DATABASE = "registry.db"
BEGUN = "registry.db.new"
"""The database while it is being made."""
ADDRESS = "database.url"
"""The file with the address of an external database, `postgresql://USER:${VARIABLE}@HOST/NAME`."""
HEAD = "0004"
"""The newest migration."""
_MIGRATIONS = ("0001", "0002", "0003", HEAD)


TENANTS = "tenants"
"""The folder in a registry with one registry per tenant of its server."""


def shared(folder: Path) -> Path | None:
    """The registry that contains the tenant's registry in a folder; None without one."""
    whole = folder.parent.parent
    return whole if folder.parent.name == TENANTS and is_registry(whole) else None


def is_registry(folder: Path) -> bool:
    """Whether a folder has a registry's database or its address."""
    return (folder / DATABASE).is_file() or (folder / ADDRESS).is_file()


def create_database(folder: Path, address: str) -> None:
    """Make the tables of a new registry: all of them, or nothing.

    Args:
        address: of a PostgreSQL database. Empty: SQLite, or for a tenant a separate schema in the containing registry's
            PostgreSQL database.

    Raises:
        UserError, RecipeError: see `open_database`.
    """
    whole = shared(folder)
    if not address and whole is not None and (whole / ADDRESS).is_file():
        address = _schema_of_tenant(whole, folder.name)
    begun = folder / BEGUN
    begun.unlink(missing_ok=True)
    made = _postgresql(address, folder / ADDRESS) if address else create_engine(f"sqlite:///{begun}")
    migrate(made)
    made.dispose()
    if address:
        (folder / ADDRESS).write_text(f"{address}\n", encoding="utf-8")
    else:
        begun.rename(folder / DATABASE)


def _schema_of_tenant(whole: Path, tenant: str) -> str:
    """The address of a tenant's schema, which is made if missing."""
    name = f"tenant_{hashlib.sha256(tenant.encode()).hexdigest()[:32]}"
    database = open_database(whole)
    with database.begin() as connection:
        connection.exec_driver_sql(f"CREATE SCHEMA IF NOT EXISTS {name}")
    database.dispose()
    address = make_url((whole / ADDRESS).read_text(encoding="utf-8").strip())
    return address.update_query_dict({"options": f"-csearch_path={name}"}).render_as_string(hide_password=False)


def open_database(folder: Path) -> Engine:
    """The database of a registry in a folder.

    Raises:
        UserError: its address is not PostgreSQL's, or a package is missing.
        RecipeError: the environment lacks the variable of the password.
    """
    file = folder / ADDRESS
    if not file.is_file():
        return create_engine(f"sqlite:///{folder / DATABASE}")
    return _postgresql(file.read_text(encoding="utf-8").strip(), file)


def _postgresql(text: str, file: Path) -> Engine:
    try:
        address = make_url(text)
        if address.get_backend_name() not in ("postgresql", "postgres"):
            raise UserError(f"{file}: {address.get_backend_name()} is not offered", action="use postgresql://HOST/NAME")
        if address.password:
            address = address.set(password=expand(str(address.password), str(file)))
        return create_engine(address.set(drivername="postgresql+psycopg"), pool_pre_ping=True, hide_parameters=True)
    except ArgumentError as error:
        raise UserError(f"{file}: not an address of a database", action="use postgresql://HOST/NAME") from error
    except ImportError as error:
        raise UserError(f"{file}: {error}", action=install_command("finetooth-registry[postgresql]")) from error


def version_of(connection: Connection) -> str:
    """The current migration of a database; empty if it has no tables."""
    tables = inspect(connection).get_table_names()
    if "alembic_version" in tables:
        return str(connection.execute(text("SELECT version_num FROM alembic_version")).scalar() or "")
    return _MIGRATIONS[0] if "versions" in tables else ""


def check(revision: str, where: Path) -> None:
    """Checks that this version can read the database.

    Raises:
        UserError: the database has no tables, or the registry is of a later finetooth.
    """
    if not revision:
        raise UserError(f"the database of {where} is empty", action="restore the registry")
    if revision not in _MIGRATIONS:
        raise UserError(f"{where} is of a later finetooth (its tables are at {revision})", action="update finetooth")


def migrate(database: Engine, artifact_of: Callable[[str], str | None] = lambda record: None) -> None:
    """Bring the tables up to date, in one transaction.

    Args:
        artifact_of: from a stored record to the SHA-256 of its artifact's manifest; None: it names none.
    """
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    with database.begin() as connection:
        if database.dialect.name == "sqlite":
            connection.exec_driver_sql("BEGIN IMMEDIATE")  # sqlite3 does not begin transactions for tables
        config.attributes |= {"connection": connection, "artifact_of": artifact_of}
        if version_of(connection) == _MIGRATIONS[0] and not inspect(connection).has_table("alembic_version"):
            command.stamp(config, _MIGRATIONS[0])
        command.upgrade(config, "head")
