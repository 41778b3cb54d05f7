"""A disk that fills up in the middle of a run: the place is named, and the last good checkpoint is gone on from."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

sys.path.insert(0, str(Path(__file__).parents[1] / "torture"))

from killing import differences, left  # type: ignore[import-not-found]

Run = Callable[..., tuple[int, str]]

FILL = '''
import finetooth_hooks
from pathlib import Path

@finetooth_hooks.hookimpl
def ft_checkpoint_saved(run, path: Path):
    """Somebody else takes what is left of the disk once step 4 is there."""
    size = 2**20 if path.name == "step-4" else 0
    with (run.folder.parent / "somebody-elses").open("ab", buffering=0) as file:
        while size:
            try:
                file.write(bytes(size))
            except OSError:
                size //= 2
'''

STEPS = {"batch_size": 8, "precision": "fp32", "max_length": 256, "max_steps": 6, "epochs": 9}


@pytest.fixture
def tiny_model(tiny_smollm2: Path) -> Path:
    """With a vocabulary of real size, which is what takes room here."""
    return tiny_smollm2


@pytest.fixture
def ft(tmp_path: Path) -> Run:
    """Runs a command as a process; its exit code, and what it said on stderr."""

    def run(*arguments: str | Path, largest: int = 0) -> tuple[int, str]:
        import resource

        def limit() -> None:
            if largest:
                resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))

        environment = {**os.environ, "FT_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [sys.executable, "-m", "finetooth", *map(str, arguments)],
            capture_output=True, text=True, env=environment, preexec_fn=limit, check=False,
        )  # fmt: skip
        lines = [line for line in done.stderr.splitlines() if not line.startswith(("Loading", "Writing"))]
        return done.returncode, "\n".join(lines)

    return run


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of a few megabytes."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=9m", "tmpfs", str(folder)], capture_output=True, check=False
    ) if os.geteuid() == 0 else None  # fmt: skip
    if mount is None or mount.returncode:
        pytest.skip("only root may make a small file system")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)  # a worker of a rank may be at its end yet


def written(recipe: Mapping[str, Any], folder: Path, output: Path) -> Path:
    folder.mkdir(exist_ok=True)
    checkpoint = {"every": 2, "keep_last": 2, "wait_for_room": 0}
    content = {**recipe, "train": STEPS, "checkpoint": checkpoint, "output": str(output)}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(content))
    return folder / "recipe.yaml"


def leftovers(folder: Path) -> list[str]:
    """What was begun and not completed."""
    return sorted(path.name for path in folder.rglob(".*") if path.name != ".lock")


@pytest.mark.slow
def test_a_full_folder_of_another_rank_is_named(
    recipe: Callable[..., Any], ft: Run, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rank 0 writes to a disk with room, rank 1 to TMPDIR, which has a megabyte left."""
    (small / "somebody-elses").write_bytes(bytes(8 * 2**20))
    monkeypatch.setenv("TMPDIR", str(small))
    file = written(recipe(adapter="full"), tmp_path / "ranks", tmp_path / "run")
    code, said = ft("run", file, "scale.devices=2")
    assert code == 2, said
    assert f"TMPDIR: {small}/ft-ranks-" in said and "set TMPDIR to another disk" in said


@pytest.mark.slow
def test_a_disk_without_a_byte_left(recipe: Callable[..., Any], ft: Run, small: Path, tmp_path: Path) -> None:
    (tmp_path / "fill.py").write_text(FILL)
    full, run = written(recipe(), tmp_path / "one", small / "run"), small / "run"
    code, said = ft("run", full, "--plugins", tmp_path / "fill.py")
    assert code == 1, said
    last = said.splitlines()[-1]  # the last checkpoint or metrics.jsonl may still have had a few bytes
    named = f"trackers: {run}/metrics.jsonl", f"{run}/checkpoints/step-6", f"{run}/artifact"
    assert last.startswith(tuple(f"error: {one} cannot be written" for one in named)), last
    assert " cannot be written: No space left on device (make room" in last
    assert f"resume with: ft resume {run}" in said and "the newest checkpoint that could be written is" in said
    assert f"{run}/result.json cannot be written: No space left on device (make room)" in said
    assert "Traceback" not in said
    assert leftovers(run) == []
    assert ft("checkpoint", "verify", run)[0] == 0

    (small / "somebody-elses").unlink()
    code, said = ft("resume", run, "plugins=[]")
    assert code == 0 and "resuming after step 4" in said, said
    quiet = written(recipe(), tmp_path / "two", tmp_path / "quiet")
    assert ft("run", quiet)[0] == 0
    assert differences(left(tmp_path / "quiet"), left(run)) == []


@pytest.mark.slow
def test_a_limit_on_the_size_of_files(recipe: Callable[..., Any], ft: Run, tmp_path: Path) -> None:
    pytest.importorskip("resource")
    run, quiet = tmp_path / "run", tmp_path / "quiet"
    assert ft("run", written(recipe(), tmp_path / "one", quiet))[0] == 0
    assert ft("run", written(recipe(), tmp_path / "two", run), "train.max_steps=4")[0] == 0
    (run / "result.json").unlink()
    state = run / "checkpoints/step-4/engine"
    largest = max(path.stat().st_size for path in state.iterdir()) - 1
    before = {path: path.read_bytes() for path in (run / "checkpoints").rglob("*.*")}

    code, said = ft("resume", run, "train.max_steps=6", largest=largest)
    assert code == 1, said
    assert f"{run}/checkpoints/step-6 cannot be written: File too large (raise the limit of the size of files" in said
    assert f"the newest checkpoint that could be written is step-4; resume with: ft resume {run}" in said
    assert "Traceback" not in said
    assert {path: path.read_bytes() for path in (run / "checkpoints").rglob("*.*")} == before
    assert leftovers(run) == []
    assert json.loads((run / "result.json").read_text())["status"] == "failed"

    code, said = ft("resume", run, "train.max_steps=6")
    assert code == 0 and "resuming after step 4" in said, said
