"""Structs of Parquet and Arrow files, whose missing fields Arrow makes nulls, and texts that a small file repeats."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest
from finetooth_hooks import DataError, Row
from finetooth_hooks.protocols import Source
from finetooth_kit import FakeContext
from finetooth_tables import columnar
from finetooth_tables.source import TablesOptions, build
from hypothesis import given, settings
from hypothesis import strategies as st

KEYS = st.sampled_from(["city", "a", "b", "enum"])
STRUCTS = st.recursive(
    st.dictionaries(KEYS, st.integers(0, 9), min_size=1, max_size=3),
    lambda inner: st.fixed_dictionaries({}, optional={"of": inner, "items": st.lists(inner, max_size=2)}).filter(bool),
    max_leaves=4,
)


def source(path: Path, notes: list[str] | None = None) -> Source:
    return build(TablesOptions(path=str(path)), FakeContext(path.parent, notes=[] if notes is None else notes))


def rows(path: Path, notes: list[str] | None = None) -> list[Row]:
    return list(source(path, notes).rows())


def values(path: Path) -> list[dict[str, Any]]:
    return [dict(row.values) for row in rows(path)]


@settings(deadline=None, max_examples=60)
@given(st.lists(st.fixed_dictionaries({"n": st.integers(0, 9), "of": STRUCTS}), min_size=1, max_size=5))
def test_structs_are_read_as_they_were_before_arrow_padded_them(
    tmp_path_factory: pytest.TempPathFactory, written: list[dict[str, Any]]
) -> None:
    table, folder = pa.Table.from_pylist(written), tmp_path_factory.getbasetemp()
    pq.write_table(table, folder / "padded.parquet")
    feather.write_feather(table, str(folder / "padded.arrow"))
    notes: list[str] = []
    for path in (folder / "padded.parquet", folder / "padded.arrow"):
        assert [dict(row.values) for row in rows(path, notes)] == written
    padded = table.to_pylist() != written
    assert len(notes) == 2 * padded
    assert all("nulls inside column 'of' are read as absent" in note for note in notes)


def test_nulls_in_lists_and_in_json_stay(tmp_path: Path) -> None:
    of_lists = pa.array([[1, None], [None]], pa.list_(pa.int64()))
    text = ['{"city": null}', None]
    pq.write_table(pa.table({"lists": of_lists, "text": text}), tmp_path / "x.parquet")
    notes: list[str] = []
    assert [dict(r.values) for r in rows(tmp_path / "x.parquet", notes)] == [
        {"lists": [1, None], "text": '{"city": null}'},
        {"lists": [None], "text": None},
    ]
    assert notes == []
    (tmp_path / "x.json").write_text('[{"call": {"city": null}}]')
    assert values(tmp_path / "x.json") == [{"call": {"city": None}}]


def test_nulls_in_the_lists_of_a_struct_stay_and_it_is_said_once(tmp_path: Path) -> None:
    written = [{"of": {"items": [n, None], "even" if n % 2 else "odd": n}} for n in range(2 * columnar.PORTION_ROWS)]
    pq.write_table(pa.Table.from_pylist(written), tmp_path / "x.parquet")
    notes: list[str] = []
    assert [row.values for row in rows(tmp_path / "x.parquet", notes)] == written
    assert len(notes) == 1 and len(list(source(tmp_path / "x.parquet").portions())) > 1


def test_structs_inside_maps_are_padded_too(tmp_path: Path) -> None:
    struct = pa.struct([("a", pa.int64()), ("b", pa.int64())])
    maps = pa.array([[("k", {"a": 1, "b": 2})], [("k", {"a": 1, "b": None})]], pa.map_(pa.string(), struct))
    pq.write_table(pa.table({"m": maps}), tmp_path / "x.parquet")
    assert values(tmp_path / "x.parquet") == [{"m": [("k", {"a": 1, "b": 2})]}, {"m": [("k", {"a": 1})]}]


def test_texts_that_a_small_file_repeats_unfold_a_portion_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, long = tmp_path / "x.parquet", "x" * 100_000
    table = pa.table({"n": list(range(500)), "text": [None, *[long] * 499], "few": ["a", "b"] * 250})
    pq.write_table(table, path)
    plain = tmp_path / "plain.parquet"
    pq.write_table(table, plain, use_dictionary=False)
    assert path.stat().st_size < 500_000 < table.nbytes
    portions = list(source(path).portions())
    assert len(portions) > 100  # three rows each
    assert [row.values for row in rows(path)] == table.to_pylist()
    monkeypatch.setattr(columnar, "LARGEST_ROW", 50_000)
    for file in (path, plain):
        with pytest.raises(DataError, match=r"\.parquet.*row 2 has 100,001 bytes of text"):
            rows(file)
