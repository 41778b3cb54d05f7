"""Tables as the datasets library reads them, and what is said of broken ones."""

from __future__ import annotations

import csv
import dataclasses
import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from finetooth_datasets import source, tables
from finetooth_datasets.builder import DatasetsOptions
from finetooth_datasets.plugin import claims
from finetooth_datasets.source import DatasetsSource
from finetooth_hooks import DataError, Row
from finetooth_kit import entries_of, parametrize_with_checks

SMALL = Path(__file__).parent / "small.csv"
ENTRIES = [dataclasses.replace(e, example={"path": str(SMALL)}) for e in entries_of("finetooth_datasets.plugin")]


@parametrize_with_checks("finetooth_datasets.plugin", *ENTRIES)
def test_conforms(check: Any) -> None:
    check()


@pytest.fixture(scope="module")
def bad(shared: Path) -> Path:
    return shared / "bad"


def rows(path: Path | str, **options: Any) -> list[Row]:
    return list(DatasetsSource(DatasetsOptions(path=str(path), **options)).rows())


def values(path: Path | str, **options: Any) -> list[Any]:
    return [dict(row.values) for row in rows(path, **options)]


TEXTS = [
    {"prompt": "007", "completion": "1.50"},
    {"prompt": "NA", "completion": ""},
    {"prompt": 'a "quoted",\nfield', "completion": "é😀"},
    {"prompt": "null", "completion": "True"},
]


@pytest.mark.parametrize(("ending", "dialect"), [("csv", "excel"), ("tsv", "excel-tab")])
def test_fields_of_a_table_stay_what_the_file_says(tmp_path: Path, ending: str, dialect: str) -> None:
    path = tmp_path / f"x.{ending}"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["prompt", "completion"], dialect=dialect)
        writer.writeheader()
        writer.writerows(TEXTS)
    assert values(path) == TEXTS


def test_parquet_and_arrow_and_json(tmp_path: Path) -> None:
    table = pa.Table.from_pylist(TEXTS)
    pq.write_table(table, tmp_path / "x.parquet")
    with pa.OSFile(str(tmp_path / "x.arrow"), "wb") as file, pa.ipc.new_stream(file, table.schema) as stream:
        stream.write_table(table)
    (tmp_path / "x.json").write_text(json.dumps(TEXTS))
    for ending in ("parquet", "arrow", "json"):
        assert values(tmp_path / f"x.{ending}") == TEXTS, ending
    (tmp_path / "x.json").write_text("\n".join(map(json.dumps, TEXTS)))  # lines, which the library reads too
    assert values(tmp_path / "x.json") == TEXTS


def test_splits_and_slices(tmp_path: Path) -> None:
    pq.write_table(pa.table({"n": list(range(20))}), tmp_path / "x.parquet")
    assert [row["n"] for row in values(tmp_path / "x.parquet", split="train[:10%]")] == [0, 1]
    assert [row["n"] for row in values(tmp_path / "x.parquet", split="train[5:7]")] == [5, 6]
    ids = [row.id for row in rows(tmp_path / "x.parquet", split="train[5:7]")]
    assert ids == [f"{tmp_path}/x.parquet:train[5:7]:{i}" for i in range(2)]
    with pytest.raises(DataError, match="it has no split 'test': "):
        rows(tmp_path / "x.parquet", split="test")


def test_rows_under_a_key(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(json.dumps({"version": 1, "data": TEXTS}))
    assert values(tmp_path / "x.json", field="data") == TEXTS
    with pytest.raises(DataError, match="nope"):
        rows(tmp_path / "x.json", field="nope")


def test_nothing_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A local file leaves no cache, neither in the library's place nor beside it."""
    cache = tmp_path / "cache"
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "x.json").write_text(json.dumps(TEXTS))
    rows(folder / "x.json")
    assert not cache.exists() and [path.name for path in folder.iterdir()] == ["x.json"]


@pytest.mark.parametrize(
    ("file", "problem"),
    [
        ("ragged.csv", "line 3: 3 fields, 2 expected; line 4: 1 field, 2 expected; line 6: a quote is not closed"),
        ("truncated.parquet", r"the file has no Parquet footer \(cut off\?\)"),
    ],
)
def test_the_broken_files(bad: Path, file: str, problem: str) -> None:
    with pytest.raises(DataError, match=problem) as error:
        rows(bad / file)
    assert str(error.value).startswith((bad / file).as_posix())


def text(content: str) -> Callable[[Path], Any]:
    return lambda path: path.write_text(content)


@pytest.mark.parametrize(
    ("name", "write", "problem"),
    [
        ("x.csv", text(""), "the file is empty"),
        ("x.csv", text("a,b\n"), "x.csv: no rows, only a header"),
        ("x.tsv", text("a\tb\n\n"), "x.tsv: no rows, only a header"),
        ("x.csv", text("\n\n"), "x.csv: no rows, only blank lines"),
        ("x.csv", text("a,a\n1,2\n"), r"x\.csv:1: two columns are named 'a'"),
        ("x.csv", lambda path: path.write_bytes(b"a,b\n1,\xff\n"), r"x\.csv:2: not UTF-8: byte 0xff at offset 6"),
        ("x.csv", text("a,b\n" + "1\n" * 8), "line 6: 1 field, 2 expected; and 3 more"),
        ("x.csv", text('a,b\n1,"two\nlines"\n3\n'), "line 4: 1 field, 2 expected"),
        ("x.parquet", text("not parquet"), "it is not a Parquet file"),
        ("x.parquet", lambda path: path.write_bytes(b"PAR1" + b"\0" * 20 + b"PAR1"), "it cannot be read"),
        ("x.arrow", text("not arrow"), "it cannot be read"),
        ("x.json", text('[{"a": 1},\n {"a": }]'), r"x\.json:2: not JSON: "),
        ("x.json", text('{"a": 1}\n{"a": 2}\n{"a": }\n'), r"x\.json:3: not JSON: expecting value"),
        ("x.json", text('[{"a": 1}, [2]]'), "it cannot be read"),
    ],
)
def test_other_faults(tmp_path: Path, name: str, write: Callable[[Path], Any], problem: str) -> None:
    write(tmp_path / name)
    with pytest.raises(DataError, match=problem) as error:
        rows(tmp_path / name)
    assert "\n" not in str(error.value)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no such file: .*none\.csv"):
        rows(tmp_path / "none.csv")


def test_the_header_may_follow_blank_lines_and_a_mark(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_bytes(b"\xef\xbb\xbf\na,b\n1,2\n")
    tables.check(tmp_path / "x.csv")
    assert tables.header(tmp_path / "x.csv") == ["a", "b"]


def test_the_hub_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """No network in tests: the library's own errors are raised in its place."""

    def load(*args: Any, **kwargs: Any) -> Any:
        try:
            raise ConnectionError("no route to host")
        except ConnectionError as cause:
            raise FileNotFoundError("Couldn't find any data file") from cause

    monkeypatch.setattr(source.datasets, "load_dataset", load)
    with pytest.raises(DataError, match="org/name: it is not on this machine, and the hub cannot be reached"):
        rows("org/name")

    def absent(*args: Any, **kwargs: Any) -> Any:
        raise datasets.exceptions.DatasetNotFoundError("no")

    monkeypatch.setattr(source.datasets, "load_dataset", absent)
    with pytest.raises(DataError, match="org/name: no such dataset on the hub"):
        rows("org/name")


def test_a_hub_that_cannot_be_reached_is_not_asked_again_and_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """The real client, and a port at which nobody listens."""
    monkeypatch.chdir(tmp_path)
    from finetooth_toolbox.files import hub

    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
    monkeypatch.setattr(hub, "_known", {})
    action = r"hf download --repo-type dataset org/name --local-dir FOLDER, and here \{name: datasets, path: FOLDER\}"
    with pytest.raises(DataError, match=rf"org/name: .*the hub cannot be reached \(.*refused\) \(.*{action}"):
        rows("org/name")
    Path("rows").mkdir()  # a path is meant where its folder is there
    with pytest.raises(DataError, match=r"^no such file or folder: rows/nope; .* \(check the path\)$"):
        rows("rows/nope")
    assert not datasets.config.HF_HUB_OFFLINE
    assert caplog.text == ""  # the client says each of its attempts


def test_the_hub_gets_the_options(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def load(*args: Any, **kwargs: Any) -> Any:
        seen.append((args, kwargs))
        return [{"a": 1}]

    monkeypatch.setattr(source.datasets, "load_dataset", load)
    about = {"split": "test[:1%]", "revision": "v1", "data_files": ["a.jsonl"]}
    assert rows("org/name", config="main", **about) == [Row("org/name:test[:1%]:0", {"a": 1})]
    assert seen == [(("org/name", "main"), about)]


@pytest.mark.parametrize(
    ("reference", "strength"),
    [
        ("a.csv", 0),
        ("b/c.PARQUET", 0),
        ("hf://org/name", 0),
        ("org/name", 1),
        ("org/x.jsonl", 0),
        ("name", 0),
        ("a.txt", 0),
    ],
)
def test_claims(reference: str, strength: int) -> None:
    claim = claims(reference)
    assert (claim.strength if claim else 0) == strength


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A folder with a dataset of one split, and one with a dataset of two."""
    one = datasets.Dataset.from_dict({"n": list(range(20))})
    one.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict({"train": one, "test": datasets.Dataset.from_dict({"n": [7, 8]})}).save_to_disk(
        str(tmp_path / "two")
    )
    return tmp_path


@pytest.mark.parametrize(
    ("folder", "split", "expected"),
    [
        ("one", "train", list(range(20))),
        ("one", "train[5:7]", [5, 6]),
        ("two", "train[:10%]", [0, 1]),
        ("two", "test", [7, 8]),
        ("two", "train[:1]+test", [0, 7, 8]),
    ],
)
def test_a_saved_dataset(saved: Path, folder: str, split: str, expected: list[int]) -> None:
    assert [row["n"] for row in values(saved / folder, split=split)] == expected


def test_a_saved_dataset_without_the_split(saved: Path) -> None:
    with pytest.raises(DataError, match=r"two: it has no split 'nope': .*'train', 'test'"):
        rows(saved / "two", split="nope")
    next((saved / "one").glob("*.arrow")).write_bytes(b"no arrow")
    with pytest.raises(DataError, match="one: it cannot be read"):
        rows(saved / "one")


def test_a_saved_dataset_is_claimed(saved: Path) -> None:
    claim = claims(str(saved / "two"))
    assert claim is not None and claim.strength == 2 and claims(str(saved)) is None
    (saved / "one/dataset_info.json").unlink()
    assert claims(str(saved / "one")) is None


def test_what_rows_are_made_of(saved: Path) -> None:
    def made_of(path: str) -> Any:
        return DatasetsSource(DatasetsOptions(path=path)).files()

    assert made_of(str(SMALL)) == (SMALL,)
    (saved / "one/.cache").mkdir()
    (saved / "one/.cache/hidden").write_text("")
    assert {path.name for path in made_of(str(saved / "one"))} == {
        "data-00000-of-00001.arrow",
        "dataset_info.json",
        "state.json",
    }
    assert made_of("org/name") is None


def test_a_hub_dataset_is_identified_by_its_fingerprint(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No network in tests: datasets saved to disk stand for those that the hub gives."""
    given: dict[str, Any] = {}
    loads: list[Any] = []

    def load(*args: Any, **kwargs: Any) -> Any:
        loads.append(args)
        return given["dataset"]

    def identity() -> str | None:
        return DatasetsSource(DatasetsOptions(path="org/name")).identity()

    monkeypatch.setattr(source.datasets, "load_dataset", load)
    given["dataset"] = datasets.load_from_disk(str(saved / "one"))
    first = identity()
    assert first is not None and given["dataset"]._fingerprint in first and identity() == first
    seen = {first}
    given["dataset"].info.download_checksums = {"hf://datasets/org/name@0123/x.parquet": {}}
    seen.add(identity())
    given["dataset"].info.download_checksums = {"hf://datasets/org/name@4567/x.parquet": {}}
    seen.add(identity())
    given["dataset"] = given["dataset"].map(lambda row: {"n": row["n"] + 1})
    seen.add(identity())
    assert len(seen) == 4
    given["dataset"] = [{"n": 1}]  # nothing that has a fingerprint
    assert identity() is None
    loads.clear()
    given["dataset"] = datasets.load_from_disk(str(saved / "one"))
    one = DatasetsSource(DatasetsOptions(path="org/name"))
    assert one.identity() == first and len(list(one.rows())) == len(list(one.rows())) == 20
    assert len(loads) == 1  # the rows are those that were identified


def test_an_existing_path_is_no_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "org/name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert claims("org/name") is None


CALLS = [{"call": {"name": "weather", "arguments": {"city": "Rome"}}}, {"call": {"name": "add", "arguments": {"a": 1}}}]


def test_nulls_that_structs_are_padded_with_are_absent(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(CALLS), tmp_path / "x.parquet")
    datasets.Dataset.from_parquet(str(tmp_path / "x.parquet")).save_to_disk(tmp_path / "saved")
    notes: list[str] = []
    for path in (tmp_path / "x.parquet", tmp_path / "saved"):
        read = DatasetsSource(DatasetsOptions(path=str(path)), notes.append).rows()
        assert [dict(row.values) for row in read] == CALLS
    assert [note.split(":")[0] for note in notes] == [f"{tmp_path}/x.parquet", f"{tmp_path}/saved"]


def test_a_null_that_the_library_keeps_as_json_stays(tmp_path: Path) -> None:
    features = datasets.Features(
        {"calls": datasets.List({"arguments": datasets.Json(), "id": datasets.Value("string")})}
    )
    written = [{"calls": [{"arguments": {"city": None}, "id": None}]}]
    datasets.Dataset.from_list(written, features=features).save_to_disk(tmp_path / "saved")
    assert values(tmp_path / "saved") == [{"calls": [{"arguments": {"city": None}}]}]
