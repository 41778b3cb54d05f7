"""Saving and loading the state of a full fine-tune, and the same tensors through `torch.save` and `torch.load`; they
take turns in one process. What is read lies in the page cache, for everybody."""

from __future__ import annotations

import os
import shutil
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from meter import Meter
from ours import recipe


def main() -> None:
    """Train one step, so that there is an optimizer's state; then save and load by turns."""
    meter = Meter()
    spec = {**meter.spec, "adapter": "full", "precision": "bf16"}
    import finetooth
    import torch
    from finetooth_saving.artifact import stage_folder
    from finetooth_torch.state.training_state import read_state

    session = finetooth.session(recipe(spec))
    method, engine = session.job.method, session.engine
    next(iter(method.steps(engine)))
    state = engine.snapshot().to_host()
    files = {name: dict(tensors) for name, tensors in state.files.items()}
    place = Path(spec["scratch"]) / "states"

    def checkpoint(path: Path) -> None:
        path.mkdir()
        stage_folder(path / "step-1", lambda folder: state.save(folder / "engine"), {}).rename(path / "step-1")

    def plain(path: Path) -> None:
        path.mkdir()
        torch.save(files, path / "state.pt")

    def flushed(path: Path) -> None:
        plain(path)
        for one in (path / "state.pt", path):
            descriptor = os.open(one, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)

    ways: dict[str, tuple[Callable[[Path], Any], Callable[[Path], Any]]] = {
        "finetooth, engine state": (state.save, read_state),
        "torch.save": (plain, lambda path: torch.load(path / "state.pt", weights_only=True)),
        "finetooth, checkpoint": (checkpoint, lambda path: read_state(path / "step-1/engine")),
        "torch.save, fsync": (flushed, lambda path: torch.load(path / "state.pt", weights_only=True)),
    }
    saves: dict[str, list[float]] = defaultdict(list)
    loads: dict[str, list[float]] = defaultdict(list)
    for _ in range(spec["repeats"]):
        for name, (save, load) in ways.items():
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir()
            saves[name].append(seconds(save, place / "one"))
            loads[name].append(seconds(load, place / "one"))
    meter.write(state_bytes=state.nbytes, save_s=saves, load_s=loads)


def seconds(call: Callable[[Path], Any], path: Path) -> float:
    """What a call takes."""
    begun = time.perf_counter()
    call(path)
    return time.perf_counter() - begun


if __name__ == "__main__":
    main()
