"""Rows as the databases have them, in order, streamed; no password anywhere."""

from __future__ import annotations

import dataclasses
import re
import sqlite3
import tempfile
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from finetooth_hooks import DataError, RecipeError
from finetooth_kit import entries_of, parametrize_with_checks
from finetooth_sql.database import Database
from finetooth_sql.plugin import claims
from finetooth_sql.source import SqlOptions, build
from finetooth_sql.statement import problem
from pydantic import ValidationError

_EXAMPLES = tempfile.TemporaryDirectory()  # as long as the module


def make(path: Path, count: int = 5) -> Path:
    connection = sqlite3.connect(path)
    with connection:
        connection.execute("create table chats (id integer primary key, prompt text, completion text, raw blob)")
        rows = [(n, f"é{n}", f"a:{n} % ${n}", bytes([n % 256])) for n in range(count)]
        connection.executemany("insert into chats values (?, ?, ?, ?)", rows)
    connection.close()
    return path


SMALL = make(Path(_EXAMPLES.name) / "small.db")
QUERY = "select prompt, completion from chats order by id"
ENTRIES = [
    dataclasses.replace(e, example={"url": f"sqlite:///{SMALL}", "query": QUERY})
    for e in entries_of("finetooth_sql.plugin")
]


@parametrize_with_checks("finetooth_sql.plugin", *ENTRIES)
def test_conforms(check: Any) -> None:
    check()


def source(url: str, query: str = QUERY) -> Any:
    return build(SqlOptions(url=url, query=query))


def values(url: str, query: str = QUERY) -> list[dict[str, Any]]:
    return [dict(row.values) for row in source(url, query).rows()]


# --- SQLite -----------------------------------------------------------------------------------------------------------


def test_rows_of_sqlite() -> None:
    query = "select prompt, completion as answer, raw from chats where completion like 'a:%' order by id desc limit 2"
    built = source(f"sqlite:///{SMALL}", query)
    rows = list(built.rows())
    assert [dict(row.values) for row in rows] == [
        {"prompt": f"é{n}", "answer": f"a:{n} % ${n}", "raw": bytes([n])} for n in (4, 3)
    ]
    assert [row.id for row in rows] == [f"{built.name}:row 1", f"{built.name}:row 2"]
    assert built.name.startswith(f"sqlite:///{SMALL}#") and built.files() == (SMALL,)
    assert source(f"sqlite:///{SMALL}").name != built.name  # two queries of one database


@pytest.mark.parametrize(
    ("reference", "url"),
    [
        ("postgresql://host/name", "postgresql://host/name"),
        ("postgresql://me:hush@host/name", "postgresql://USER:${PASSWORD}@HOST/NAME"),
    ],
)
def test_a_server_that_is_named_alone_asks_for_a_query(reference: str, url: str) -> None:
    assert claims(reference) is not None
    with pytest.raises(ValidationError) as told:
        SqlOptions.model_validate({"path": reference})
    assert f"write {{name: sql, url: '{url}', query: 'SELECT ... FROM ... ORDER BY ...'}}" in str(
        told.value.errors()[0]
    )
    assert "hush" not in told.value.errors()[0]["msg"]


def test_a_file_that_is_named_alone_gives_the_rows_of_its_table(tmp_path: Path) -> None:
    """In the order in which SQLite keeps them; of several tables one is named."""
    path = make(tmp_path / "T.DB")
    assert claims(str(path)) is not None

    def taken(**options: str) -> list[dict[str, Any]]:
        built = build(SqlOptions.model_validate({"path": str(path), **options}))
        return [dict(row.values) for row in built.rows()]

    whole = values(f"sqlite:///{path}", "select * from chats order by id")
    assert taken() == whole == taken(table="chats") and len(whole) == 5
    assert taken(query="select id from chats order by id desc limit 1") == [{"id": 4}]
    with sqlite3.connect(path) as connection:
        connection.execute('create table "other ""one""" (note text)')
        connection.execute('insert into "other ""one""" values (?)', ("kept",))
    with pytest.raises(DataError, match=r"it has several tables \(set table: chats or other "):
        taken()
    with pytest.raises(DataError, match=r"it has no table 'chat' \(set table: chats or other "):
        taken(table="chat")
    assert taken(table='other "one"') == [{"note": "kept"}]
    sqlite3.connect(tmp_path / "empty.db").execute("pragma user_version = 1")
    with pytest.raises(DataError, match=r"it has no table \("):
        build(SqlOptions.model_validate({"path": str(tmp_path / "empty.db")}))


@pytest.mark.parametrize(
    ("made", "subject"),
    [
        ("create table t (id integer primary key, note text) without rowid", "table 't' was made WITHOUT ROWID: it"),
        ("create view t as select * from chats", "view 't'"),
    ],
)
def test_a_table_without_an_order_of_its_own_asks_for_a_query(tmp_path: Path, made: str, subject: str) -> None:
    path = make(tmp_path / "t.db")
    with sqlite3.connect(path) as connection:
        connection.execute(made)
    with pytest.raises(DataError, match=rf"the {subject} has no order of its own \(set query: .* FROM t ORDER BY"):
        build(SqlOptions.model_validate({"path": str(path), "table": "t"}))


@pytest.mark.parametrize("reference", ["t.csv", "https://host/t.db", "db", ""])
def test_other_references_are_left_to_others(reference: str) -> None:
    assert claims(reference) is None


def test_sqlite_is_not_written_to(tmp_path: Path) -> None:
    path = make(tmp_path / "x.db")
    before = path.read_bytes()
    with pytest.raises(DataError, match=r"attempt to write a readonly database"):
        values(f"sqlite:///{path}", "with x as (select 1) insert into chats select 9, 'a', 'b', 'c' order by 1")
    assert path.read_bytes() == before
    with pytest.raises(DataError, match="no such file"):
        values(f"sqlite:///{tmp_path}/none.db")
    assert not (tmp_path / "none.db").exists()


def test_a_journal_is_part_of_the_rows(tmp_path: Path) -> None:
    path = make(tmp_path / "x.db")
    writer = sqlite3.connect(path)
    writer.execute("pragma journal_mode=wal")
    writer.execute("insert into chats values (99, 'new', 'row', null)")
    writer.commit()
    built = source(f"sqlite:///{path}")
    assert [file.name for file in built.files()] == ["x.db", "x.db-wal"]
    assert len(list(built.rows())) == 6
    writer.close()


@pytest.mark.parametrize(
    ("content", "query", "said"),
    [
        (b"", QUERY, "the file is empty"),
        (b"no database at all", QUERY, "it is not an SQLite database"),
        (None, "select nope from chats order by 1", "the query failed: no such column: nope"),
        (None, "select id, prompt as id from chats order by 1", "two columns are named 'id'"),
        (None, "select id from chats where id > 100 order by id", "the query gives no rows"),
    ],
)
def test_faults(tmp_path: Path, content: bytes | None, query: str, said: str) -> None:
    path = tmp_path / "x.db"
    if content is None:
        make(path)
    else:
        path.write_bytes(content)
    with pytest.raises(DataError, match=said) as error:
        values(f"sqlite:///{path}", query)
    assert "\n" not in str(error.value) and "x.db" in str(error.value)


# --- the query --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "query",
    [
        "select a from t order by a",
        "SELECT a FROM t WHERE b = ';' ORDER\n BY a;",
        "with x as (select 1) select * from x order by 1",
        "select 1 union select 2 order by 1",
        "/* all */ select a -- order\nfrom t order by a -- done",
        "select $$ ; $$ order by 1",
    ],
)
def test_queries_with_an_order(query: str) -> None:
    assert problem(query) is None


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("select a from t", "no ORDER BY"),
        ("select a from (select a from t order by a) x", "no ORDER BY"),
        ("select 'order by' from t", "no ORDER BY"),
        ('select "order by" from t -- order by a', "no ORDER BY"),
        ("select row_number() over (order by a) from t", "no ORDER BY"),
        ("delete from t", "begins with DELETE"),
        ("select a from t order by a; drop table t", "several statements"),
        (" -- nothing", "it is empty"),
    ],
)
def test_queries_that_are_refused(query: str, said: str) -> None:
    found = problem(query)
    assert found is not None and said in found[0]
    with pytest.raises(RecipeError, match="source sql, query: "):
        source(f"sqlite:///{SMALL}", query)


# --- the address ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("postgresql://me:abc123@host/db", "it holds a password"),
        ("postgresql://host/db?password=abc123", "it holds a password"),
        ("postgresql://host/db?sslpassword=abc123", "it holds a password"),
        ("postgresql://me:${FT_NOT_THERE}@host/db", "the environment has no FT_NOT_THERE"),
        ("mysql://host/db", "of the kind 'mysql'"),
        ("abc123", "it is not an address of a database"),
    ],
)
def test_addresses_that_are_refused(url: str, said: str) -> None:
    with pytest.raises(RecipeError, match=said) as error:
        Database(url)
    assert "abc123" not in str(error.value)


def test_an_address_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FT_TEST_URL", f"sqlite:///{SMALL}")
    built = source("${FT_TEST_URL}")
    assert len(list(built.rows())) == 5 and built.name.startswith("${FT_TEST_URL}#")


# --- PostgreSQL -------------------------------------------------------------------------------------------------------


@pytest.fixture
def table(postgres: Any) -> Any:
    postgres.execute(
        "drop table if exists chats",
        "drop sequence if exists numbers",
        "create sequence numbers",
        "create table chats (id int primary key, prompt text, raw bytea, n numeric, at timestamp, doc jsonb)",
        "insert into chats select i, 'é' || i || ' % :x', '\\x00ff', 1.50, '2024-02-29', '{\"a\": [1, null]}'"
        " from generate_series(1, 5000) i",
    )
    return postgres


def test_rows_of_postgresql(table: Any) -> None:
    built = source(table.url, "select prompt, raw, n, at, doc from chats where prompt like '%:x' order by id desc")
    rows = list(built.rows())
    assert len(rows) == 5000 and built.files() is None
    assert rows[0].values == {
        "prompt": "é5000 % :x",
        "raw": b"\x00\xff",
        "n": Decimal("1.50"),
        "at": datetime(2024, 2, 29),
        "doc": {"a": [1, None]},
    }
    assert rows[1].id == f"postgresql://127.0.0.1:{table.port}/postgres#{built.name[-6:]}:row 2"


def test_rows_come_through_a_cursor(table: Any) -> None:
    """The server is asked for a thousand rows, not for all."""
    rows = source(table.url, "select prompt from chats order by id").rows()
    next(rows)
    asked = table.execute(
        "select query from pg_stat_activity where state = 'idle in transaction' and pid <> pg_backend_pid()"
    )
    rows.close()
    assert len(asked) == 1 and re.match("FETCH FORWARD (999|1000) ", asked[0][0])


def test_the_identity_is_that_of_the_rows(table: Any) -> None:
    query = "select id, prompt from chats order by id"
    first = source(table.url, query).identity()
    assert source(table.url, query).identity() == first
    built = source(table.url, query)
    assert built.identity() == first and len(list(built.rows())) == 5000
    table.execute("update chats set prompt = 'other' where id = 4999")
    assert source(table.url, query).identity() != first
    with pytest.raises(DataError, match="the rows changed while they were read"):
        list(built.rows())


def test_postgresql_is_not_written_to(table: Any) -> None:
    with pytest.raises(DataError, match="in a read-only transaction"):
        values(table.url, "select nextval('numbers') order by 1")
    assert table.execute("select nextval('numbers')") == [(1,)]


def test_no_password_is_told(table: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    query = "select nope from chats order by id"
    whole = f"postgresql://rows:wr0ng-secret@127.0.0.1:{table.port}/postgres"
    monkeypatch.setenv("FT_TEST_URL", whole)
    monkeypatch.setenv("FT_TEST_WRONG", "wr0ng-secret")
    wrong = table.url.replace("FT_TEST_PG", "FT_TEST_WRONG")
    for url, said in (
        (table.url, 'column "nope" does not exist'),
        (wrong, "password authentication failed"),
        ("${FT_TEST_URL}", "password authentication failed"),
    ):
        with pytest.raises(DataError, match=said) as error:
            values(url, query)
        shown = f"{error.value} {error.value!r} {error.value.__cause__}"
        assert "wr0ng-secret" not in shown and table.password not in shown and "\n" not in str(error.value)


def test_a_server_that_is_not_there(postgres: Any) -> None:
    with pytest.raises(DataError, match=r"the query failed: .*refused"):
        values("postgresql://rows@127.0.0.1:1/postgres")
