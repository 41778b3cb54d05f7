"""Separates NumPy arrays from the state of a method for `state.json`, saves them in a second file, and restores them.

They are .npy files in one archive, `state.npz`, not safetensors: .npy supports every NumPy type, and preserves byte
order and memory order. The archive never has code: writing and reading refuse arrays of Python objects.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

FILE = "state.npz"

Array = NDArray[Any]
Place = list[str | int]
"""Keys and indices that lead to an array."""


def own_arrays(value: Any) -> Any:
    """A state with unchanging arrays: copies those that their owner may still change."""
    if isinstance(value, np.ndarray):
        return value if _is_constant(value) else value.copy(order="K")
    if isinstance(value, Mapping):
        return {key: own_arrays(item) for key, item in value.items()}
    return [own_arrays(item) for item in value] if isinstance(value, list | tuple) else value


def separated(state: Mapping[str, Any]) -> tuple[dict[str, Any], list[Place], tuple[Array, ...]]:
    """A state with None instead of each array; the places of the arrays; and the arrays.

    Raises:
        TypeError: an array holds Python objects, or is below a key that is not text, which JSON cannot restore.
    """
    places: list[Place] = []
    arrays: list[Array] = []

    def lean(value: Any, place: Place, named: bool) -> Any:
        if isinstance(value, np.ndarray):
            where = ".".join(map(str, place))
            if value.dtype.hasobject:
                raise TypeError(f"the array {where} of the method's state holds Python objects: give it another type")
            if not named:
                raise TypeError(f"the array {where} of the method's state lies below a key that is not text")
            places.append(place)
            arrays.append(value)
            return None
        if isinstance(value, Mapping):
            return {key: lean(inner, [*place, key], named and isinstance(key, str)) for key, inner in value.items()}
        if isinstance(value, list | tuple):
            return [lean(inner, [*place, index], named) for index, inner in enumerate(value)]
        return value

    return lean(state, [], True), places, tuple(arrays)


def joined(state: Mapping[str, Any], places: Sequence[Place], arrays: Sequence[Array]) -> Mapping[str, Any]:
    """Undo `separated`; mappings and lists on the path to an array are copied.

    Raises:
        KeyError, IndexError, TypeError, ValueError: the places or the arrays do not fit the state.
    """
    for place, array in zip(places, arrays, strict=True):
        state = _with(state, place, array)
    return state


def _with(value: Any, place: Sequence[str | int], array: Array) -> Any:
    if not place:
        return array
    copied = list(value) if isinstance(value, list) else dict(value)
    copied[place[0]] = _with(copied[place[0]], place[1:], array)  # type: ignore[index]
    return copied


def write(path: Path, arrays: Sequence[Array]) -> None:
    """Write one .npy file per array, named by its number; the same arrays give the same bytes."""
    with zipfile.ZipFile(path, "w") as archive:
        for number, array in enumerate(arrays):
            with archive.open(zipfile.ZipInfo(f"{number}.npy"), "w", force_zip64=True) as file:
                np.lib.format.write_array(file, array, allow_pickle=False)


def read(path: Path, count: int) -> tuple[Array, ...]:
    """Reads `count` arrays from an archive.

    Raises:
        OSError, ValueError: the arrays are missing, damaged, or hold Python objects.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if sorted(archive.namelist()) != sorted(f"{number}.npy" for number in range(count)):
                raise ValueError(f"{path.name} does not hold {count} arrays")
            arrays = []
            for number in range(count):
                with archive.open(f"{number}.npy") as file:
                    arrays.append(np.lib.format.read_array(file, allow_pickle=False))
            return tuple(arrays)
    except (zipfile.BadZipFile, EOFError) as error:
        raise ValueError(f"{path.name}: {error}") from error


def _is_constant(array: Array) -> bool:
    """Whether neither the array nor the array that it views is writable."""
    base: Any = array
    while isinstance(base, np.ndarray):
        if base.flags.writeable:
            return False
        base = base.base
    return base is None or isinstance(base, bytes)
