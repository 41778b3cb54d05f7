"""A state from anywhere: what no engine wrote is refused in one line, and the engine is as before."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from finetooth_hooks import UserError
from safetensors.torch import load_file, save_file

pytestmark = pytest.mark.parametrize("kit", ["auto"], indirect=True)  # the same whatever computes the layers


class Opened:
    """Would leave a mark if it were unpickled."""

    def __reduce__(self) -> Any:
        return (Path.touch, (Path("unpickled"),))


def change(folder: Path, **parts: Any) -> None:
    """Replace parts of state.json; its hashes are those of the files as they are now."""
    state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    state["files"] = {
        name: hashlib.sha256((folder / name).read_bytes()).hexdigest()
        for name in state["files"]
        if (folder / name).is_file()
    }
    (folder / "state.json").write_text(json.dumps({**state, **parts}), encoding="utf-8")


def tensors(name: str, edit: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    """Edit the tensors of a file."""

    def damage(folder: Path) -> None:
        held = {key: value.clone() for key, value in load_file(folder / f"{name}.safetensors").items()}
        edit(held)
        save_file(held, folder / f"{name}.safetensors")
        change(folder)

    return damage


def first(held: dict[str, torch.Tensor], make: Callable[[torch.Tensor], torch.Tensor], dims: int = 2) -> None:
    """Make the first tensor of so many dimensions anew."""
    name = next(name for name in sorted(held) if held[name].dim() == dims)
    held[name] = make(held[name]).contiguous()


def content(edit: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    """Edit state.json."""

    def damage(folder: Path) -> None:
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        edit(state)
        (folder / "state.json").write_text(json.dumps(state), encoding="utf-8")

    return damage


def raw(name: str, written: bytes) -> Callable[[Path], None]:
    """Other bytes in a file, with the right hash."""

    def damage(folder: Path) -> None:
        (folder / name).write_bytes(written)
        change(folder)

    return damage


def header(entries: dict[str, Any], body: bytes = b"") -> bytes:
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text + body


def link(name: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (folder / name).rename(folder.parent / name)
        (folder / name).symlink_to(folder.parent / name)

    return damage


def pipe(folder: Path) -> None:
    (folder / "trained.safetensors").unlink()
    os.mkfifo(folder / "trained.safetensors")


def outside(folder: Path) -> None:
    state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    target = folder.parent / "secret.safetensors"
    target.write_bytes((folder / "trained.safetensors").read_bytes())
    named = {**state["files"], "../secret.safetensors": hashlib.sha256(target.read_bytes()).hexdigest()}
    change(folder, files=named)


def state_entry(edit: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    """Edit the JSON of the optimizer's state of its first parameter: pairs of a name and what stands for a tensor."""

    def of(state: dict[str, Any]) -> None:
        by_name = dict(state["optimizer"]["items"])
        pairs = by_name["state"]["items"][0][1]["items"]
        edit({"pairs": pairs, "index": by_name["state"]["items"][0]})

    return content(of)


def deep(folder: Path) -> None:
    (folder / "state.json").write_text("[" * 200_000 + "]" * 200_000, encoding="utf-8")


def counted(**values: Any) -> Callable[[Path], None]:
    return content(lambda state: state["counters"].update(values))


def elsewhere(value: Any) -> Callable[[Path], None]:
    return content(lambda state: state.update(elsewhere=value))


HUGE = {"x": {"dtype": "F32", "shape": [2**40, 2**20], "data_offsets": [0, 2**62]}}
LONG = {"x": {"dtype": "F32", "shape": [2**30], "data_offsets": [0, 2**32]}}
HOSTILE: dict[str, tuple[Callable[[Path], None], str]] = {
    "a path out of the folder": (outside, "'../secret.safetensors', which no state has"),
    "an absolute path": (content(lambda s: s["files"].update({"/etc/passwd": "0"})), "'/etc/passwd'"),
    "a pickle's name": (content(lambda s: s["files"].update({"optimizer.pt": "0"})), "'optimizer.pt'"),
    "files that are no mapping": (content(lambda s: s.update(files=["trained.safetensors"])), "names no trained"),
    "files without weights": (content(lambda s: s["files"].pop("trained.safetensors")), "names no trained"),
    "a hash that is no text": (content(lambda s: s["files"].update({"trained.safetensors": None})), "not what was"),
    "weights of another rank": (
        elsewhere({"trained": {"x": ["float32", [2]]}}),
        "that of a rank, whose weights rank 0",
    ),
    "elsewhere without a type": (elsewhere({"trained": {"x": ["save", [2]]}}), "elsewhere is not what an engine"),
    "elsewhere, 2^70 numbers": (elsewhere({"trained": {"x": ["float32", [2**70]]}}), "elsewhere is not what an engine"),
    "elsewhere, no file": (elsewhere({"of no name": {"x": ["float32", [2]]}}), "elsewhere is not what an engine"),
    "elsewhere, a list": (elsewhere(["trained"]), "elsewhere is not what an engine"),
    "a linked file": (link("trained.safetensors"), "not a plain file"),
    "a linked state.json": (link("state.json"), "not a plain file"),
    "a pipe": (pipe, "not a plain file"),
    "a pickle": (raw("optimizer.safetensors", pickle.dumps(Opened())), "is not a safetensors file"),
    "a header of 2^60 bytes": (
        raw("trained.safetensors", struct.pack("<Q", 2**60) + b"{}"),
        "is not a safetensors file",
    ),
    "a shape of 2^60 numbers": (raw("trained.safetensors", header(HUGE)), "is not a safetensors file"),
    "more than the file has": (raw("trained.safetensors", header(LONG, b"1234")), "is not a safetensors file"),
    "an empty file": (raw("trained.safetensors", b""), "is not a safetensors file"),
    "a list for a state": (
        lambda f: (f / "state.json").write_text("[]") and None,
        "does not hold a saved engine state",
    ),
    "lists in lists": (deep, "does not hold a saved engine state"),
    "an unknown weight": (tensors("trained", lambda h: h.update(more=torch.ones(2))), "not a state of this adapter"),
    "a weight of another shape": (tensors("trained", lambda h: first(h, lambda t: t.T)), "not a state of this adapter"),
    "a weight of another type": (tensors("trained", lambda h: first(h, lambda t: t.long())), "in torch.int64"),
    "an unknown gradient": (tensors("gradients", lambda h: h.update(more=torch.ones(2))), "a gradient 'more'"),
    "a gradient of another shape": (tensors("gradients", lambda h: first(h, lambda t: t.T)), "a gradient"),
    "a gradient of another type": (tensors("gradients", lambda h: first(h, lambda t: t.half())), "in torch.float16"),
    "an unknown moment": (tensors("optimizer", lambda h: h.update(more=torch.ones(2))), "'more', which no state has"),
    "a moment of another shape": (tensors("optimizer", lambda h: first(h, lambda t: t.T)), "with the shape"),
    "a moment of whole numbers": (tensors("optimizer", lambda h: first(h, lambda t: t.long())), "in torch.int64"),
    "a step of many numbers": (tensors("optimizer", lambda h: first(h, lambda t: torch.ones(9), 0)), "with the shape"),
    "no second moment": (state_entry(lambda e: e["pairs"].pop()), "no 'exp_avg_sq'"),
    "a number for a moment": (state_entry(lambda e: e["pairs"][-1].__setitem__(1, 3.0)), "as a float"),
    "a state of no parameter": (state_entry(lambda e: e["index"].__setitem__(0, 999)), "a state of parameter 999"),
    "an optimizer of text": (content(lambda s: s.update(optimizer="none")), "another optimizer"),
    "a tensor that is not there": (content(lambda s: s.update(optimizer={"tensor": "x"})), "optimizer is not what"),
    "an unknown kind": (content(lambda s: s.update(losses={"object": []})), "losses is not what"),
    "losses of numbers": (content(lambda s: s.update(losses={"items": [["a", 1]]})), "states of losses"),
    "options of no group": (content(lambda s: s.update(optimizer_options={"tuple": []})), "optimizer_options"),
    "a random state of no generator": (tensors("random", lambda h: h.update(cpu=torch.ones(9).byte())), "'cpu' is no"),
    "an unknown generator": (tensors("random", lambda h: h.update(dice=h["cpu"].clone())), "'dice' is not a state"),
    "a random state of zeros": (tensors("random", lambda h: h.update(cpu=h["cpu"] * 0)), "'cpu' is not a state"),
    "a loss of NaN": (counted(loss=float("nan")), "counters are"),
    "a step before the first": (counted(step=-1), "counters are"),
    "half a step": (counted(step=1.5), "counters are"),
    "an unknown counter": (counted(more=1), "counters are"),
    "rows of numbers": (counted(rows=[1, 2]), "counters are"),
    "no counters": (content(lambda s: s.pop("counters")), "counters are"),
    "a loss scale of 0": (content(lambda s: s["scaler"].update(scale=0.0)), "loss scale"),
    "a loss scale of NaN": (content(lambda s: s["scaler"].update(scale=float("nan"))), "loss scale"),
    "no schedule": (content(lambda s: s.pop("schedule")), "schedule's state"),
    "another schedule": (content(lambda s: s.update(schedule={"else": 1})), "does not fit this schedule"),
}


@pytest.fixture(scope="module")
def saved(kit: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    engine = kit.engine()
    for _ in range(2):
        engine.forward_backward(kit.data(3), kit.nll)
        engine.step()
    engine.forward_backward(kit.data(3), kit.nll)
    folder = tmp_path_factory.mktemp("saved") / "state"
    engine.save(folder)
    return folder


@pytest.fixture(scope="module")
def engine(kit: SimpleNamespace) -> Any:
    one = kit.engine()
    one.forward_backward(kit.data(3, seed=1), kit.nll)
    one.step()
    one.forward_backward(kit.data(3, seed=2), kit.nll)
    return one


def held(engine: Any, folder: Path) -> dict[str, bytes]:
    engine.save(folder)
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


@pytest.mark.parametrize("what", HOSTILE)
def test_what_no_engine_wrote_is_refused_and_changes_nothing(
    saved: Path, engine: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    damage, words = HOSTILE[what]
    folder = tmp_path / "state"
    folder.mkdir()
    for file in saved.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    monkeypatch.chdir(tmp_path)
    before, drawn = held(engine, tmp_path / "before"), torch.get_rng_state()
    damage(folder)
    with pytest.raises(UserError) as caught:
        engine.load(folder)
    assert words in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 600
    assert held(engine, tmp_path / "after") == before
    assert torch.equal(torch.get_rng_state(), drawn)
    assert not (tmp_path / "unpickled").exists()


def test_the_state_that_was_damaged_is_a_good_one(saved: Path, kit: SimpleNamespace, tmp_path: Path) -> None:
    other = kit.engine()
    other.load(saved)
    assert held(other, tmp_path / "again") == {file.name: file.read_bytes() for file in sorted(saved.iterdir())}


def test_what_was_loaded_does_not_lie_in_the_files(saved: Path, kit: SimpleNamespace, tmp_path: Path) -> None:
    """Whatever happens to the files afterwards: a truncated file behind a mapped tensor would end the process."""
    folder = tmp_path / "state"
    folder.mkdir()
    for file in saved.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    other = kit.engine()
    other.load(folder)
    before = held(other, tmp_path / "before")
    for file in folder.iterdir():
        with file.open("r+b") as stream:
            stream.write(bytes(file.stat().st_size))
            stream.truncate(0)
    assert held(other, tmp_path / "after") == before
    other.step()
    assert all(np.isfinite(value).all() for value in kit.weights(other).values())
