"""What contenders share: hashes of rows, the peers' clock, imports by cost, FLOPs of a generation."""

from __future__ import annotations

import json
import sys
import types

import pytest

TEXT = """\
import time: self [us] | cumulative | imported package
import time:       100 |        100 |     json.scanner
import time:       250 |        350 |   json
something that the command says
import time:      1000 |       1350 | finetooth_core.cli
import time:        40 |         40 | site
"""


def test_the_costliest_imports_come_first():
    from import_times import summary

    found = summary(TEXT, most=2)
    assert (found["modules"], found["total_ms"]) == (4, 1.4)
    assert found["top"] == [
        {"name": "finetooth_core.cli", "level": 0, "cumulative_ms": 1.35, "own_ms": 1.0},
        {"name": "json", "level": 1, "cumulative_ms": 0.35, "own_ms": 0.25},
    ]


def test_a_real_import_is_read():
    import subprocess

    from import_times import summary

    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", "import json"], capture_output=True, text=True, check=True
    )
    top = {one["name"]: one for one in summary(done.stderr, most=1000)["top"]}
    assert top["json.decoder"]["level"] == top["json"]["level"] + 1
    assert top["json"]["cumulative_ms"] >= top["json"]["own_ms"] + top["json.decoder"]["cumulative_ms"] - 0.01


def test_what_stands_behind_the_last_trained_token_is_not_hashed():
    from meter import rows_digest

    assert rows_digest([([1, 2, 3, 9], [2])]) == rows_digest([([1, 2, 3], [2])])
    assert rows_digest([([1, 2, 4], [2])]) != rows_digest([([1, 2, 3], [2])])
    assert rows_digest([([0, 2, 3], [2])]) != rows_digest([([1, 2, 3], [2])])
    assert rows_digest([([1, 2, 3], [1, 2])]) != rows_digest([([1, 2, 3], [2])])
    assert rows_digest([([1, 2], [1]), ([3, 4], [1])]) != rows_digest([([3, 4], [1]), ([1, 2], [1])])


@pytest.fixture
def meter(tmp_path, monkeypatch):
    """A clock with a spec of its own."""
    from meter import Meter

    (tmp_path / "spec.json").write_text(json.dumps({"started": 0.0}))
    monkeypatch.setattr(sys, "argv", ["contender.py", str(tmp_path / "spec.json"), str(tmp_path / "result.json")])
    return Meter()


def test_the_peers_clock_sees_what_was_trained(meter, monkeypatch):
    torch = pytest.importorskip("torch")
    from meter import rows_digest
    from peer_clock import PeerClock

    class Trainer:
        def training_step(self, model, inputs, num_items=None):
            return torch.tensor(0.25)

    fake = types.ModuleType("transformers")
    fake.Trainer, fake.TrainerCallback = Trainer, object
    monkeypatch.setitem(sys.modules, "transformers", fake)
    clock = PeerClock(meter)
    steps, trainer = clock.watch(), Trainer()
    first = {
        "input_ids": torch.tensor([[5, 6, 7], [8, 9, 0]]),
        "attention_mask": torch.tensor([[1, 1, 1], [1, 1, 0]]),
        "labels": torch.tensor([[-100, 6, 7], [8, 9, -100]]),
    }
    second = {name: value[:1, :2] for name, value in first.items()}
    steps.on_step_begin()
    trainer.training_step(None, first, num_items=3)  # two micro-batches of one step
    trainer.training_step(None, second)
    steps.on_step_end()
    assert meter._losses == [0.5]
    work = clock.work()
    expected = rows_digest([([5, 6, 7], [1, 2]), ([8, 9], [1]), ([5, 6], [1])])
    assert work == {
        "tokens": 7,
        "positions": 8,
        "head_positions": 8,
        "pairs": 2 * 9 + 4,
        "rows_digest": expected,
    }


def test_rows_padded_on_the_left_are_the_same_rows():
    from peer_clock import trained_row

    assert trained_row([0, 5, 6], [0, 1, 1], [-100, -100, 6]) == trained_row([5, 6, 0], [1, 1, 0], [-100, 6, -100])


def test_a_generation_reads_shared_beginnings_once():
    from ours_generate import work

    # [1 2] is shared; 2 + 1 + 2 prompt positions, then two new tokens read by each of the two
    found = work([[1, 2, 3], [1, 2, 4, 5]], 3)
    assert found["positions"] == 5 + 4
    assert found["head_positions"] == 6
    prompt, decoding = (1 + 2) + 3 + (3 + 4), (4 + 5) + (5 + 6)
    assert found["pairs"] == prompt + decoding


def test_native_kernels_are_reported_whether_they_are_there_or_not(monkeypatch):
    import native_compile

    fake = types.ModuleType("finetooth_native.build")
    fake.library = lambda: None
    fake.available = lambda: types.SimpleNamespace(reason="no compiler")
    package = types.ModuleType("finetooth_native")
    package.build = fake
    monkeypatch.setitem(sys.modules, "finetooth_native", package)
    monkeypatch.setitem(sys.modules, "finetooth_native.build", fake)
    assert native_compile.load() == {"reason": "no compiler"}
    fake.library = object
    assert native_compile.load()["seconds"] >= 0
    del package.build
    monkeypatch.delitem(sys.modules, "finetooth_native.build")
    assert native_compile.load() == {"reason": "this version has no native kernels"}


def test_the_meter_tells_the_clock_from_the_processor(meter, tmp_path, monkeypatch):
    """What comes before the first step counts in neither, nor does what comes after the last."""
    import meter as module

    now = {"clock": 100.0, "processor": 7.0}
    monkeypatch.setattr(module.time, "monotonic", lambda: now["clock"])
    monkeypatch.setattr(module, "processor_s", lambda: now["processor"])
    meter.begin()
    for _ in range(2):
        now["clock"], now["processor"] = now["clock"] + 10.0, now["processor"] + 4.0
        meter.step(1.0)
    now["processor"] = 99.0
    meter.trained(tokens=40, positions=40, head_positions=40, pairs=1.0)
    told = json.loads((tmp_path / "result.json").read_text())
    assert (told["train_s"], told["train_cpu_s"]) == (20.0, 8.0)
    assert (told["tokens_per_second"], told["tokens_per_cpu_second"]) == (2.0, 5.0)


def test_a_slow_reward_is_the_quick_one_later(monkeypatch):
    import grpo_rows

    slept = []
    monkeypatch.setattr(grpo_rows.time, "sleep", slept.append)
    texts = ["aeiou", "xyz", [{"role": "assistant", "content": "ab"}]]
    assert grpo_rows.slow_vowels(texts) == grpo_rows.vowels(texts) == [1.0, 0.0, 0.5]
    assert slept == [grpo_rows.SLOW_SECONDS]
