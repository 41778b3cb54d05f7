"""`ft merge` over a quantised base: what is written computes what the run computed, or is not kept."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import finetooth
import numpy as np
import pytest
from finetooth_hooks import Datum

Recipe = dict[str, Any]
ABSENT = pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="needs bitsandbytes: finetooth[bitsandbytes]")


@pytest.fixture
def trained(recipe: Callable[..., Recipe], tmp_path: Path) -> Callable[..., Any]:
    """Trains over a quantised base, evaluated before it ends; gives the session."""

    def make(quantization: Any, **sections: Any) -> Any:
        tasks = {"name": "tasks", "task": "family"}
        held_out = {**tasks, "split": "eval", "count": 8, "seed": 1}
        data = {"train": {**tasks, "count": 24, "seed": 5}, "eval": held_out, "renderer": "chatml"}
        train = {"epochs": 2, "batch_size": 8, "precision": "fp32"}
        evaluate = {"evaluators": ["loss"], "every": 3}
        sections = {"data": data, "train": train, "evaluate": evaluate, **sections}
        session = finetooth.session(recipe(quantization=quantization, **sections))
        session.run()
        return session

    return make


def of(model: Any, recipe: Callable[..., Recipe], output: Path) -> Any:
    """An engine of a folder."""
    return finetooth.session(recipe(model=str(model), output=str(output), train={"precision": "fp32"})).engine


@pytest.mark.parametrize("quantization", ["int4", "mxfp4", pytest.param("nf4", marks=ABSENT)])
def test_plain_numbers_compute_what_the_run_computed(
    trained: Callable[..., Any], recipe: Callable[..., Recipe], ft: Callable[..., Any], tmp_path: Path,
    quantization: str,
) -> None:  # fmt: skip
    """The run was evaluated: bitsandbytes' own modules would have been repacked by that, and merged to garbage."""
    session = trained(quantization)
    datum = Datum.from_tokens(list(range(20, 60)))
    wanted = session.engine.logprobs([datum])[0]
    code, out, err = ft("merge", tmp_path / "run")
    assert code == 0, out + err
    assert "loss: loss" in out and "of the written model" in out
    merged = of(tmp_path / "run/merged", recipe, tmp_path / "next").logprobs([datum])[0]
    np.testing.assert_allclose(merged, wanted, atol=2e-4)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["int8", "int4", "mxfp4"])
def test_packed_weights_are_measured_and_read_back(
    trained: Callable[..., Any], recipe: Callable[..., Recipe], ft: Callable[..., Any], tmp_path: Path, form: str
) -> None:
    session = trained("int8")
    code, out, err = ft("merge", tmp_path / "run", "--to", form, "--bound", "0.5")
    assert code == 0, out + err
    config = json.loads((tmp_path / "run/merged/config.json").read_text(encoding="utf-8"))
    assert config["quantization_config"]["format"] == ("mxfp4-" if form == "mxfp4" else "") + "pack-quantized"
    plain, packed = tmp_path / "plain", tmp_path / "run/merged"
    assert ft("merge", tmp_path / "run", "--output", plain)[0] == 0
    assert (packed / "model.safetensors").stat().st_size < 0.9 * (plain / "model.safetensors").stat().st_size
    found = of(packed, recipe, tmp_path / "next")
    datum = Datum.from_tokens(list(range(20, 60)))
    off = np.abs(found.logprobs([datum])[0] - session.engine.logprobs([datum])[0]).mean()
    assert 0 < off < (0.02 if form == "int8" else 0.3)


@pytest.mark.slow
def test_what_was_packed_is_the_next_runs_base(
    trained: Callable[..., Any], recipe: Callable[..., Recipe], ft: Callable[..., Any], tmp_path: Path, losses: Any
) -> None:
    """A LoRA trains over the bits as they were written, and is merged into the numbers they stand for."""
    trained("int8")
    assert ft("merge", tmp_path / "run", "--to", "mxfp4", "--bound", "0.5")[0] == 0
    train = {"max_steps": 4, "batch_size": 8, "precision": "fp32"}
    session = finetooth.session(recipe(model=str(tmp_path / "run/merged"), output=str(tmp_path / "next"), train=train))
    stored = {n: b.clone() for n, b in session.engine._parts.network.base.named_buffers() if n.endswith(".codes")}
    assert len(stored) == 14 and all(codes.dtype.itemsize == 1 for codes in stored.values())
    session.run()
    assert losses(tmp_path / "next")[-1] < losses(tmp_path / "next")[0]
    after = dict(session.engine._parts.network.base.named_buffers())
    assert all((after[name] == codes).all() for name, codes in stored.items())
    code, out, err = ft("merge", tmp_path / "next")
    assert code == 0, out + err
    datum = Datum.from_tokens(list(range(20, 60)))
    merged = of(tmp_path / "next/merged", recipe, tmp_path / "last").logprobs([datum])[0]
    np.testing.assert_allclose(merged, session.engine.logprobs([datum])[0], atol=2e-4)


def test_what_was_trained_for_mxfp4_is_packed_without_loss(
    trained: Callable[..., Any], recipe: Callable[..., Recipe], ft: Callable[..., Any], tmp_path: Path
) -> None:
    session = trained(None, adapter={"name": "qat", "format": "mxfp4"})
    code, out, err = ft("merge", tmp_path / "run", "--to", "mxfp4", "--bound", "0.001")
    assert code == 0 and "of the written model" in out, out + err
    datum = Datum.from_tokens(list(range(20, 60)))
    packed = of(tmp_path / "run/merged", recipe, tmp_path / "next").logprobs([datum])[0]
    np.testing.assert_allclose(packed, session.engine.logprobs([datum])[0], atol=1e-4)


def test_what_is_worse_than_the_bound_is_not_kept(
    trained: Callable[..., Any], ft: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from finetooth_torchshared import packing

    trained("int8")
    rounded = packing.packed
    monkeypatch.setattr(packing, "packed", lambda weight, form, name: rounded(8 * weight, form, name))
    code, out, err = ft("merge", tmp_path / "run", "--to", "int8")
    assert code == 2, out
    assert "and --bound is 0.05; nothing was kept" in err and "worse by" in err
    assert not (tmp_path / "run/merged").exists() and not list((tmp_path / "run").glob(".merged*"))


def test_another_base_than_the_one_it_was_trained_on_is_refused(
    trained: Callable[..., Any], ft: Callable[..., Any], tmp_path: Path, tiny_model: Path
) -> None:
    import shutil

    from safetensors.torch import load_file, save_file

    base = tmp_path / "base"
    shutil.copytree(tiny_model, base)
    trained("int8", model=str(base))
    tensors = load_file(base / "model.safetensors")
    save_file({name: tensor.bfloat16() for name, tensor in tensors.items()}, base / "model.safetensors")
    code, _, err = ft("merge", tmp_path / "run")
    assert code == 2 and "which has changed since: model.safetensors has another content" in err
    (base / "model.safetensors").write_bytes((base / "model.safetensors").read_bytes()[:-100])
    code, _, err = ft("merge", tmp_path / "run")
    assert code == 2 and "its header says" in err
