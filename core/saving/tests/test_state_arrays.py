"""Arrays in a method's state come back from a file, and from memory, as they were."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from finetooth_hooks import UserError
from finetooth_saving import run_state, state_arrays
from finetooth_saving.run_state import RunState, as_state
from finetooth_saving.state_arrays import own_arrays

ARRAYS: dict[str, Any] = {
    "float64": np.linspace(-1, 1, 7),
    "float32 with NaN": np.array([[1.5, np.nan], [-np.inf, -0.0]], np.float32),
    "half": np.arange(3, dtype=np.float16),
    "whole": np.arange(-3, 3, dtype=np.int8).reshape(1, 2, 3),
    "unsigned": np.array([2**64 - 1], np.uint64),
    "truth": np.array([True, False]),
    "complex": np.array([1 + 2j]),
    "scalar": np.array(5, np.int32),
    "empty": np.zeros((0, 4), np.float32),
    "big endian": np.arange(4, dtype=">i4"),
    "columns first": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "strided": np.arange(10)[::3],
    "text": np.array(["a", "ñ"]),
}


def state_of(method: dict[str, Any]) -> RunState:
    return RunState("ab", 7, 0.5, method, {}, {}, {}, -1, 1.0)


def same(found: Any, wanted: np.ndarray[Any, Any]) -> bool:
    assert isinstance(found, np.ndarray)
    return (found.dtype, found.shape, found.tobytes()) == (wanted.dtype, wanted.shape, wanted.tobytes())


def through_file(state: RunState, folder: Path) -> RunState:
    state.write(folder)
    return run_state.read(folder / run_state.FILE)


def through_memory(state: RunState, folder: Path) -> RunState:
    return as_state(state.as_kept())


@pytest.mark.parametrize("way", [through_file, through_memory])
@pytest.mark.parametrize("name", ARRAYS)
def test_an_array_comes_back_anywhere_in_the_state(tmp_path: Path, name: str, way: Any) -> None:
    array = ARRAYS[name]
    given = {"step": 3, "a": array, "deep": [{"x": [1, array, None]}, "text"], "none": None}
    found = way(state_of(given), tmp_path).method
    assert same(found["a"], array) and same(found["deep"][0]["x"][1], array)
    found["a"] = found["deep"][0]["x"][1] = given["a"] = None
    assert found == {**given, "deep": [{"x": [1, None, None]}, "text"]}


def test_a_state_without_arrays_is_one_file_as_before(tmp_path: Path) -> None:
    state_of({"step": 3}).write(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [run_state.FILE]
    assert "arrays" not in json.loads((tmp_path / run_state.FILE).read_text())


def test_the_same_state_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        state_of(dict(ARRAYS)).write(tmp_path / name)
    one, two = ((tmp_path / name / state_arrays.FILE).read_bytes() for name in ("one", "two"))
    assert one == two


def test_what_the_owner_writes_later_does_not_change_what_is_held() -> None:
    array, constant = np.arange(3), np.arange(3)
    constant.flags.writeable = False
    view = array.view()
    view.flags.writeable = False  # whoever has the array behind it may write
    kept = own_arrays({"a": [array], "view": view, "constant": constant})
    array += 5
    assert kept["a"][0].tolist() == kept["view"].tolist() == [0, 1, 2]
    assert kept["constant"] is constant


@pytest.mark.parametrize(
    "method",
    [{"a": np.array([object()])}, {"a": {1: np.zeros(1)}}, {"a": np.array([(None, 1)], [("x", "O"), ("y", "i4")])}],
)
def test_what_cannot_come_back_is_refused_when_it_is_saved(method: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="the array a"):
        state_of(method).write(tmp_path)


def damaged(folder: Path, how: str) -> None:
    file = folder / state_arrays.FILE
    if how == "gone":
        file.unlink()
    elif how == "torn":
        file.write_bytes(file.read_bytes()[:-30])
    elif how == "another":
        state_arrays.write(file, [np.zeros(1), np.zeros(2)])
    else:
        import zipfile

        with zipfile.ZipFile(file, "w") as archive, archive.open("0.npy", "w") as member:
            np.lib.format.write_array(member, np.array([{}]), allow_pickle=True)


@pytest.mark.parametrize("how", ["gone", "torn", "another", "code"])
def test_a_damaged_archive_is_refused_by_name(tmp_path: Path, how: str) -> None:
    state_of({"a": np.arange(3)}).write(tmp_path)
    damaged(tmp_path, how)
    with pytest.raises(UserError, match=r"state\.json does not hold the state of a run"):
        run_state.read(tmp_path / run_state.FILE)
