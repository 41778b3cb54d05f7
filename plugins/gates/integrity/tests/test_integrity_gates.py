"""The gates over whole and broken checkpoints, and over engines that load back something else."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import numpy as np
import pytest
from finetooth_hooks import Candidate, EngineError, RecipeError, UserError
from finetooth_integrity import bound, finite, probe, readback
from finetooth_kit import ByteTokenizer, FakeContext, FakeEngine
from finetooth_kit.entries.store import whole_checkpoint
from finetooth_kit.fake_context import FACTS, TRAIN
from safetensors.numpy import save


@pytest.fixture
def checkpoint(tmp_path):
    tensors = save({"w": np.linspace(-1, 1, 100, dtype=np.float32)})
    return whole_checkpoint(
        tmp_path / "step-1", files={"engine/trained.safetensors": tensors, "history.jsonl": b"1\n2\n"}
    )


def test_a_whole_checkpoint_passes(checkpoint):
    for gate in (finite.FiniteGate(), readback.ReadbackGate()):
        assert gate.check(Candidate(1, checkpoint)) == ""


# --- readback ---------------------------------------------------------------------------------------------------------


def test_a_flipped_bit_in_any_file_is_named(checkpoint):
    gate = readback.ReadbackGate()
    for path in [p for p in checkpoint.rglob("*") if p.is_file() and p.name != "manifest.json"]:
        name, before = path.relative_to(checkpoint).as_posix(), path.read_bytes()
        for place in {0, len(before) // 2, len(before) - 1}:
            path.write_bytes(before[:place] + bytes([before[place] ^ 1]) + before[place + 1 :])
            assert gate.check(Candidate(1, checkpoint)) == f"{name} differs from its SHA-256 in manifest.json"
        path.write_bytes(before[:-1])
        assert re.match(f"{re.escape(name)} has {len(before) - 1} bytes", gate.check(Candidate(1, checkpoint)))
        path.unlink()
        assert gate.check(Candidate(1, checkpoint)) == f"{name} is missing"
        path.write_bytes(before)
    assert gate.check(Candidate(1, checkpoint)) == ""


def test_what_the_manifest_does_not_list_is_named(checkpoint):
    (checkpoint / "engine/more.bin").write_bytes(b"x")
    assert readback.ReadbackGate().check(Candidate(1, checkpoint)) == "engine/more.bin is not in manifest.json"


def test_a_link_is_refused(checkpoint, tmp_path):
    (checkpoint / "state.json").rename(tmp_path / "state.json")
    (checkpoint / "state.json").symlink_to(tmp_path / "state.json")
    assert readback.ReadbackGate().check(Candidate(1, checkpoint)) == "state.json is a link"


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("state.json", b"{", "it is not JSON"),
        ("more.json", b"\xff", "it is not JSON"),
        ("deep.json", b"[" * 100_000, "it is not JSON"),
        ("history.jsonl", b'{"step": 1}\n{"st', "line 2 is not JSON"),
        ("engine/trained.safetensors", b"short", "the length of its header cannot be"),
    ],
)
def test_what_was_hashed_but_cannot_be_read_is_named(name, content, says, tmp_path):
    """The hash is right: it was written so."""
    folder = whole_checkpoint(tmp_path / "x", files={name: content})
    assert readback.ReadbackGate().check(Candidate(1, folder)).startswith(f"{name}: {says}")


@pytest.mark.parametrize(
    ("files", "says"),
    [
        (None, "lists no files"),
        ({"../x": "0" * 64}, "cannot be the name of a file"),
        ({"a": "0" * 63}, "no SHA-256 of a"),
        ({"a": {"sha256": "0" * 64, "size": -1}}, "has -1 bytes"),
        ({"a": {"sha256": "0" * 64, "size": 2**60}}, "bytes"),
        ({"a": "0" * 64, "A": "0" * 64}, "are one file"),
        ({"a": "0" * 64, "a/b": "0" * 64}, "a folder that is also a file"),
    ],
)
def test_a_manifest_that_cannot_be_is_refused(files, says, checkpoint):
    (checkpoint / "manifest.json").write_text(json.dumps({"files": files}))
    assert says in readback.ReadbackGate().check(Candidate(1, checkpoint))


# --- probe ------------------------------------------------------------------------------------------------------------


class Loading(FakeEngine):
    """An engine whose `load` does what a test says."""

    def __init__(self, change=lambda table: table, error=None):
        super().__init__(ByteTokenizer())
        self.change, self.error = change, error

    def load(self, path):
        self.calls.append("load")
        if path.parent.name.startswith("finetooth-probe-"):  # its way back
            self.table = np.load(path / "table.npy")
            return
        self.table = self.change(self.table)
        if self.error:
            raise self.error

    def save(self, path):
        super().save(path)
        np.save(path / "table.npy", self.table)


class Snapshotting(Loading):
    """One that keeps its state in memory."""

    capabilities = frozenset({"snapshots"})

    def snapshot(self):
        self.calls.append("snapshot")
        return self.table.copy()

    def rollback(self, snapshot):
        self.calls.append("rollback")
        self.table = snapshot


def gate_of(context=None, **options):
    return probe.build(probe.ProbeOptions(**options), context)


@pytest.fixture
def context(tmp_path):
    return FakeContext(tmp_path)


@pytest.mark.parametrize("engine", [Loading, Snapshotting])
def test_an_engine_that_loads_back_passes(engine, checkpoint, context):
    ours = engine()
    before = ours.table.copy()
    assert gate_of(context).check(Candidate(1, checkpoint, engine=ours)) == ""
    assert np.array_equal(ours.table, before)


@pytest.mark.parametrize("engine", [Loading, Snapshotting])
def test_one_bit_is_seen_and_undone(engine, checkpoint, context):
    """The smallest change of every weight; the engine gets its own state back."""
    ours = engine(lambda table: np.nextafter(table.astype(np.float32), np.float32(1)).astype(np.float64))
    before = ours.table.copy()
    reason = gate_of(context, sequences=3, tokens=16).check(Candidate(1, checkpoint, engine=ours))
    found = re.fullmatch(r"loaded back, (\d+) of 48 log-probabilities of the probe differ from those in memory", reason)
    assert found and int(found[1]) > 0
    assert np.array_equal(ours.table, before)


def test_minus_zero_and_nan_are_compared_by_their_bits(checkpoint, context):
    same = Snapshotting()
    same.table[:] = np.nan
    assert gate_of(context).check(Candidate(1, checkpoint, engine=same)) == ""
    zero = Snapshotting(lambda table: -table)
    zero.table[:] = 0.0
    assert "differ" in gate_of(context).check(Candidate(1, checkpoint, engine=zero))


@pytest.mark.parametrize("error", [UserError("it is no state"), EngineError("two\nlines"), OSError("gone")])
def test_what_does_not_load_is_a_reason_and_undone(error, checkpoint, context):
    ours = Snapshotting(lambda table: table * 2, error)
    before = ours.table.copy()
    reason = gate_of(context).check(Candidate(1, checkpoint, engine=ours))
    assert reason.startswith("it does not load back: ") and "\n" not in reason
    assert np.array_equal(ours.table, before)


def test_the_engine_gets_its_state_back_also_where_nothing_differs(checkpoint, context):
    """What scores alike may differ elsewhere: in the optimizer's state, which no probe sees."""
    ours = Snapshotting()
    gate_of(context).check(Candidate(1, checkpoint, engine=ours))
    assert ours.calls == ["logprobs", "snapshot", "load", "logprobs", "rollback"]


def test_the_probe_is_drawn_over_the_vocabulary_with_the_run_s_seed(context, tmp_path):
    data = gate_of(context, sequences=50, tokens=200).batch(0)
    again = gate_of(FakeContext(tmp_path), sequences=50, tokens=200).batch(0)
    other = gate_of(FakeContext(tmp_path, seed=1), sequences=50, tokens=200).batch(0)
    tokens = np.concatenate([datum.tokens for datum in data])
    assert (tokens.min(), tokens.max()) == (0, context.facts.vocab_size - 1)
    assert all(len(datum) == 200 and np.array_equal(datum.tokens[1:], datum.targets[:-1]) for datum in data)
    assert all(np.array_equal(a.tokens, b.tokens) for a, b in zip(data, again, strict=True))
    assert not all(np.array_equal(a.tokens, b.tokens) for a, b in zip(data, other, strict=True))


def test_the_probe_is_no_longer_than_anything_takes(context):
    """The model's positions, the recipe's length, a micro-batch, the engine: whichever is shortest."""

    def length(bound=0, positions=512, max_length=None, micro_batch=None):
        context.facts = replace(FACTS, max_positions=positions)
        context.train = replace(TRAIN, max_length=max_length, micro_batch_tokens=micro_batch)
        return len(gate_of(context, tokens=100).batch(bound)[0])

    assert length() == 100
    assert length(positions=20) == length(max_length=20) == length(micro_batch=20) == length(bound=20) == 20


# --- bound ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "value", "says"),
    [
        ({"max": 2.0}, 2.0, ""),
        ({"max": 2.0}, 2.5, "the metric eval/loss is 2.5, above 2"),
        ({"min": 0.5}, 0.25, "the metric eval/loss is 0.25, below 0.5"),
        ({"min": 0.5, "max": 2}, 1.0, ""),
        ({"max": 2.0}, float("nan"), "the metric eval/loss is NaN"),
        ({"max": 2.0}, float("inf"), "the metric eval/loss is inf, above 2"),
        ({"min": 2.0}, None, "the metric eval/loss was not measured (there are: loss)"),
    ],
)
def test_a_metric_inside_a_bound(options, value, says, tmp_path):
    gate = bound.build(bound.BoundOptions(metric="eval/loss", **options))
    metrics = {"loss": 1.0} if value is None else {"eval/loss": value, "loss": 1.0}
    assert gate.check(Candidate(1, tmp_path, metrics)) == says


@pytest.mark.parametrize("options", [{}, {"min": 2, "max": 1}])
def test_a_bound_that_is_none_is_refused(options):
    with pytest.raises(RecipeError, match=r"checkpoint\.gates"):
        bound.build(bound.BoundOptions(metric="loss", **options))
