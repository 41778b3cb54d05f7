"""A PostgreSQL server on loopback that lives as long as the tests."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

PASSWORD = "p@ss/w:rd${x"
"""With characters that mean something in an address."""


@dataclass(frozen=True)
class Postgres:
    """A server with a user who needs a password.

    Attributes:
        url: of its database, the password as `${FT_TEST_PG}`.
    """

    port: int
    url: str
    password: str = PASSWORD

    def execute(self, *statements: str) -> list[Any]:
        """Run statements; the rows of the last one that gives some."""
        import psycopg

        found: list[Any] = []
        with psycopg.connect(
            host="127.0.0.1", port=self.port, user="rows", password=PASSWORD, dbname="postgres", autocommit=True
        ) as connection:
            for statement in statements:
                cursor = connection.execute(statement)
                found = cursor.fetchall() if cursor.description else found
        return found


def _program(name: str) -> str | None:
    installed = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return str(installed[-1]) if installed else shutil.which(name)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A server with a database of its own."""
    pytest.importorskip("psycopg", reason="psycopg is not installed")
    initdb, server = _program("initdb"), _program("postgres")
    if initdb is None or server is None:
        pytest.skip("there is no PostgreSQL server here (apt install postgresql)")
    user = None
    if os.geteuid() == 0:  # the server refuses to run as root
        names = {entry.pw_name for entry in pwd.getpwall()}
        user = next((name for name in ("postgres", "nobody") if name in names), None)
        if user is None:
            pytest.skip("PostgreSQL does not run as root, and there is no other user")
    folder = Path(tempfile.mkdtemp(prefix="ft-pg-"))  # not pytest's folder, which another user may not enter
    try:
        if user is not None:
            shutil.chown(folder, user)
        secret = folder / "password"
        secret.write_text(PASSWORD)
        secret.chmod(0o644)
        make = [initdb, "-D", str(folder / "data"), "-U", "rows", "-A", "scram-sha-256", f"--pwfile={secret}", "-N"]
        done = subprocess.run(
            [*make, "-E", "UTF8", "--locale=C"], user=user, cwd=folder, capture_output=True, text=True
        )
        if done.returncode:
            pytest.skip(f"initdb failed: {done.stderr.strip().splitlines()[-1]}")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        options = ["-p", str(port), "-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories=", "-F"]
        log = folder / "log"
        with log.open("wb") as said:
            process = subprocess.Popen(
                [server, "-D", str(folder / "data"), *options], user=user, cwd=folder, stdout=said, stderr=said
            )
        try:
            _wait(process, port)
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("FT_TEST_PG", PASSWORD)
                yield Postgres(port, f"postgresql://rows:${{FT_TEST_PG}}@127.0.0.1:{port}/postgres")
        finally:
            process.terminate()
            process.wait()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _wait(process: subprocess.Popen[bytes], port: int) -> None:
    import time

    import psycopg

    for _ in range(300):
        if process.poll() is not None:
            pytest.skip(f"the PostgreSQL server ended with exit code {process.returncode}")
        try:
            psycopg.connect(host="127.0.0.1", port=port, user="rows", password=PASSWORD, dbname="postgres").close()
            return
        except psycopg.OperationalError:
            time.sleep(0.1)
    pytest.skip("the PostgreSQL server did not answer")
