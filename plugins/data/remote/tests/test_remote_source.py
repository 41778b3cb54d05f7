"""Files from real sockets: what breaks is never used, what is unchanged is fetched once, secrets stay secret."""

from __future__ import annotations

import gzip
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from finetooth_hooks import DataError, PluginError, RecipeError
from finetooth_kit import FakeContext, parametrize_with_checks
from finetooth_remote import download
from finetooth_remote.address import read_address
from finetooth_remote.plugin import claims
from finetooth_remote.source import RemoteOptions, build

ROWS = [{"text": f"row {n}"} for n in range(1000)]
LINES = b"".join(json.dumps(row).encode() + b"\n" for row in ROWS)


@parametrize_with_checks("finetooth_remote.plugin")
def test_conforms(check: Any) -> None:
    check()


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "WAITS", (0.0, 0.0, 0.0))


@pytest.fixture
def context(tmp_path: Path) -> FakeContext:
    pytest.importorskip("aiohttp", reason="aiohttp is not installed")
    return FakeContext(tmp_path, installed=True)


def source(context: FakeContext, path: str, **options: Any) -> Any:
    return build(RemoteOptions(path=path, **options), context)


def values(context: FakeContext, path: str, **options: Any) -> list[dict[str, Any]]:
    return [dict(row.values) for row in source(context, path, **options).rows()]


def kept(context: FakeContext) -> list[Path]:
    folder = context.cache / "remote"
    return [path for path in folder.rglob("*") if path.is_file() and path.parent.name != "addresses"]


def test_rows_of_a_file_elsewhere(web: Any, context: FakeContext) -> None:
    web.files["/a/train.jsonl"] = LINES
    built = source(context, f"{web.address}/a/train.jsonl?version=2")
    assert built.capabilities == {"portions"}
    rows = list(built.rows())
    assert [dict(row.values) for row in rows] == ROWS
    assert [row.id for row in rows[:2]] == [f"{web.address}/a/train.jsonl?version=2:{n}" for n in (1, 2)]
    in_portions = [item for portion in built.portions() for item in built.read(portion)]
    assert in_portions == rows
    (file,) = built.files() or ()
    assert file.parent.name == hashlib.sha256(LINES).hexdigest() and file.read_bytes() == LINES
    assert len(built.relies_on) == 1 and built.relies_on[0].endswith(":jsonl")
    assert web.asked["Accept-Encoding"] == "identity"


def test_an_unchanged_file_is_fetched_once(web: Any, context: FakeContext) -> None:
    web.files["/train.jsonl"] = LINES
    address = f"{web.address}/train.jsonl"
    for _ in range(3):
        assert values(context, address) == ROWS
    assert web.transfers("/train.jsonl") == 1
    web.files["/train.jsonl"] = LINES.replace(b'row 7"', b'row X"')  # as many bytes
    assert values(context, address)[7] == {"text": "row X"}
    assert web.transfers("/train.jsonl") == 2
    assert len(kept(context)) == 2  # a run that uses the old one goes on


def test_the_file_that_is_read_is_held(web: Any, context: FakeContext) -> None:
    web.files["/train.jsonl"] = LINES
    built = source(context, f"{web.address}/train.jsonl")
    assert context.held == list(built.files()) == kept(context)


def test_what_is_kept_must_be_whole(web: Any, context: FakeContext) -> None:
    web.files["/train.jsonl"] = LINES
    address = f"{web.address}/train.jsonl"
    assert values(context, address) == ROWS
    (path,) = kept(context)
    path.write_bytes(LINES[:-10])
    assert values(context, address) == ROWS
    assert web.transfers("/train.jsonl") == 2


def test_without_a_version_it_is_fetched_every_time(web: Any, context: FakeContext) -> None:
    web.files["/train.jsonl"], web.etags = LINES, False
    for _ in range(2):
        assert values(context, f"{web.address}/train.jsonl") == ROWS
    assert web.transfers("/train.jsonl") == 2
    assert any("does not say which version" in note for note in context.notes)


def test_a_cut_transfer_is_begun_anew(web: Any, context: FakeContext) -> None:
    web.files["/train.jsonl"], web.cuts["/train.jsonl"] = LINES, 2
    assert values(context, f"{web.address}/train.jsonl") == ROWS
    assert web.transfers("/train.jsonl") == 3
    assert len(kept(context)) == 1


def test_a_transfer_that_is_always_cut_leaves_nothing(web: Any, context: FakeContext) -> None:
    web.files["/train.jsonl"], web.cuts["/train.jsonl"] = LINES, 99
    with pytest.raises(DataError, match=r"train\.jsonl: the server cannot be reached or the connection broke") as error:
        values(context, f"{web.address}/train.jsonl")
    assert "\n" not in str(error.value)
    assert kept(context) == []


@pytest.mark.parametrize(
    ("status", "problem"),
    [
        (404, r"the server has no such file \(404\)"),
        (403, r"access is denied \(403\)"),
        (401, r"access is denied \(401\)"),
    ],
)
def test_refusals_are_final(web: Any, context: FakeContext, status: int, problem: str) -> None:
    web.files["/train.jsonl"], web.statuses["/train.jsonl"] = LINES, [status] * 99
    with pytest.raises(DataError, match=problem):
        values(context, f"{web.address}/train.jsonl")
    assert len(web.seen) == 2  # HEAD, and GET where HEAD may not be allowed


def test_a_server_that_fails_for_a_moment(web: Any, context: FakeContext) -> None:
    web.files["/train.jsonl"], web.statuses["/train.jsonl"] = LINES, [500, 500, 503, 429]
    assert values(context, f"{web.address}/train.jsonl") == ROWS


def test_a_server_that_keeps_failing(web: Any, context: FakeContext) -> None:
    web.files["/train.jsonl"], web.statuses["/train.jsonl"] = LINES, [500] * 99
    with pytest.raises(DataError, match=r"the server answers 500 \(try again later\)"):
        values(context, f"{web.address}/train.jsonl")


def test_what_was_fetched_is_used_if_nobody_answers(web: Any, context: FakeContext) -> None:
    web.files["/train.jsonl"] = LINES
    address = f"{web.address}/train.jsonl"
    assert values(context, address) == ROWS
    web.statuses["/train.jsonl"] = [500] * 99
    assert values(context, address) == ROWS
    assert any("the run uses the file fetched before" in note for note in context.notes)
    web.statuses["/train.jsonl"] = [404] * 99
    with pytest.raises(DataError, match="no such file"):  # but not if it is gone
        values(context, address)


def test_a_file_that_changes_while_it_is_fetched(
    web: Any, context: FakeContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    web.files["/train.jsonl"] = LINES
    copy = download._copy

    def copy_and_change(stream: Any, file: Any) -> Any:
        done = copy(stream, file)
        web.files["/train.jsonl"] = b'{"text": "new"}\n'
        return done

    monkeypatch.setattr(download, "_copy", copy_and_change)
    assert values(context, f"{web.address}/train.jsonl") == [{"text": "new"}]


def test_fewer_bytes_than_were_announced(web: Any, context: FakeContext, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a library takes a connection that ends early for the end of the file."""
    web.files["/train.jsonl"] = LINES

    def copy_half(stream: Any, file: Any) -> Any:
        content = stream.read(1000)
        file.write(content)
        return len(content), hashlib.sha256(content).hexdigest()

    monkeypatch.setattr(download, "_copy", copy_half)
    with pytest.raises(DataError, match=r"1,000 of [\d,]+ bytes arrived \(try again later\)"):
        source(context, f"{web.address}/train.jsonl")
    assert kept(context) == []


def test_errors_in_rows_name_the_address(web: Any, context: FakeContext) -> None:
    web.files["/x.jsonl"] = b'{"a": 1}\nbroken\n'
    with pytest.raises(DataError) as error:
        values(context, f"{web.address}/x.jsonl")
    assert str(error.value).startswith(
        f"{web.address}/x.jsonl: 1 broken line, 1 good: line 2: not JSON: expecting value"
    )
    assert str(context.cache) not in str(error.value)
    built = source(context, f"{web.address}/x.jsonl")
    items = [item for portion in built.portions() for item in built.read(portion)]
    assert [item.where for item in items if isinstance(item, DataError)] == [f"{web.address}/x.jsonl:2"]
    from finetooth_hooks.data.problems import Problems

    refusal = built.refusal(Problems.of([item for item in items if isinstance(item, DataError)]), 1)
    assert str(refusal) == str(error.value)


def test_packed_files_and_other_readers(web: Any, context: FakeContext) -> None:
    web.files["/x.jsonl.gz"] = gzip.compress(LINES)
    assert values(context, f"{web.address}/x.jsonl.gz") == ROWS
    web.files["/x.data"] = LINES
    with pytest.raises(RecipeError, match=r"no installed source claims 'x\.data' \(pick one with source: NAME\)"):
        source(context, f"{web.address}/x.data")
    assert values(context, f"{web.address}/x.data", source="jsonl") == ROWS
    web.files["/x.csv"] = b"a;b\n1;2\n"
    reader = {"name": "tables", "delimiter": ";"}
    assert values(context, f"{web.address}/x.csv", source=reader) == [{"a": "1", "b": "2"}]


def test_secrets_are_sent_and_never_told(web: Any, context: FakeContext, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FT_TEST_TOKEN", "s3cr3t-value")
    web.files["/x.jsonl"] = LINES
    address = f"{web.address}/x.jsonl?token=${{FT_TEST_TOKEN}}"
    rows = list(source(context, address).rows())
    assert rows[0].id == f"{address}:1"
    assert not any("s3cr3t" in note for note in context.notes)
    held = [path.read_text(errors="replace") for path in context.folder.rglob("*.json")]
    assert held and not any("s3cr3t" in text for text in held)
    web.statuses["/x.jsonl"] = [404] * 9
    with pytest.raises(DataError) as error:
        source(context, address)
    assert "s3cr3t" not in str(error.value) and "FT_TEST_TOKEN" in str(error.value)


def test_another_secret_is_no_other_file(web: Any, context: FakeContext, monkeypatch: pytest.MonkeyPatch) -> None:
    """Signed addresses are new each day."""
    web.files["/x.jsonl"] = LINES
    for value in ("first-day", "second-day"):
        monkeypatch.setenv("FT_TEST_TOKEN", value)
        assert values(context, f"{web.address}/x.jsonl?sig=${{FT_TEST_TOKEN}}") == ROWS
    assert web.transfers("/x.jsonl") == 1


@pytest.mark.parametrize(
    ("address", "problem"),
    [
        ("https://example.org/x.jsonl?X-Amz-Signature=abc123", "the address holds X-Amz-Signature"),
        ("https://example.org/x.jsonl?a=1&access_token=abc123", "the address holds access_token"),
        ("https://me:abc123@example.org/x.jsonl", "the address holds a password"),
        ("https://example.org/x.jsonl?token=${FT_NOT_THERE}", "the environment has no FT_NOT_THERE"),
        ("https://example.org/", "names no file"),
        ("https://example.org/a/..", "names no file"),
        ("s3://bucket", "names no file"),
        ("ftp://example.org/x.jsonl", "it is not an address of a file"),
        ("x.jsonl", "it is not an address of a file"),
        (f"https://example.org/{'x' * 300}.jsonl", "no file here can have the name"),
    ],
)
def test_addresses_that_are_refused(address: str, problem: str) -> None:
    with pytest.raises(RecipeError, match=problem) as error:
        read_address(address)
    assert "abc123" not in str(error.value)


def test_the_name_of_a_file() -> None:
    assert read_address("https://example.org/a%20b/x%2Ey.jsonl.gz?q=/z").name == "x.y.jsonl.gz"
    assert read_address("s3://bucket/a/b c?.csv").name == "b c?.csv"
    keys = {read_address(a).key for a in ("http://h/x.csv?v=1", "http://h/x.csv?v=2", "http://u@h/x.csv?v=1")}
    assert len(keys) == 2


def test_a_full_disk_is_said_before(web: Any, context: FakeContext, monkeypatch: pytest.MonkeyPatch) -> None:
    web.files["/x.jsonl"] = LINES
    usage = shutil.disk_usage(context.folder)
    monkeypatch.setattr(download.shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(DataError, match=r"bytes, and 1,000 are free in .*FT_CACHE"):
        source(context, f"{web.address}/x.jsonl")


def test_a_package_that_is_not_there(tmp_path: Path) -> None:
    pytest.importorskip("fsspec")
    try:
        import gcsfs  # noqa: F401
    except ImportError:
        with pytest.raises(PluginError, match=r"gs:// needs a package .*pip install .*\[gcs\]'"):
            source(FakeContext(tmp_path), "gs://bucket/x.jsonl")


@pytest.mark.slow
def test_objects_of_s3(s3: str, tmp_path: Path) -> None:
    import s3fs  # type: ignore[import-untyped]

    store = s3fs.S3FileSystem(skip_instance_cache=True)
    store.mkdir("rows")
    store.pipe("rows/deep/train.jsonl", LINES)
    context = FakeContext(tmp_path, installed=True)
    address = "s3://rows/deep/train.jsonl"
    for _ in range(2):
        assert values(context, address) == ROWS
    assert sum("bytes fetched" in note for note in context.notes) == 1
    store.pipe("rows/deep/train.jsonl", b'{"text": "new"}\n')
    assert values(context, address) == [{"text": "new"}]
    with pytest.raises(DataError, match=r"s3://rows/deep/none\.jsonl: the server has no such file"):
        values(context, "s3://rows/deep/none.jsonl")
    with pytest.raises(DataError, match="the server has no such file"):
        values(context, "s3://no-such-bucket/none.jsonl")
    everything = " ".join(context.notes)
    assert "testing-secret" not in everything


@pytest.mark.slow
def test_s3_in_several_parts(s3: str, tmp_path: Path) -> None:
    """An ETag of a multipart upload is no hash of the content; the size is beyond one request's block."""
    import s3fs

    store = s3fs.S3FileSystem(skip_instance_cache=True)
    store.mkdir("parts")
    content = json.dumps({"text": "x" * 12_000_000}).encode() + b"\n"
    with store.open("parts/big.jsonl", "wb", block_size=5 * 2**20) as file:
        file.write(content)
    context = FakeContext(tmp_path, installed=True)
    assert len(values(context, "s3://parts/big.jsonl")[0]["text"]) == 12_000_000
    (path,) = kept(context)
    assert path.parent.name == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize(
    ("reference", "mine"),
    [("https://a/b.csv", True), ("S3://b/x", True), ("az://c/x.parquet", True), ("a.csv", False), ("ftp://x/y", False)],
)
def test_claims(reference: str, mine: bool) -> None:
    assert (claims(reference) is not None) is mine
