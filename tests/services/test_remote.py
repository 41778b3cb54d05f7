"""A recipe whose engine is at a server: the same run as here."""

from __future__ import annotations

import gc
import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import finetooth
import httpx2 as httpx
import numpy as np
import pytest
from finetooth_core.api import resume
from finetooth_core.cli import main
from finetooth_hooks import Datum, EngineError, Sampling, UserError
from safetensors.numpy import load_file

Recipe = dict[str, Any]


@pytest.fixture
def recipe(tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    """Twelve generated questions, dropout, a schedule that knows the end, a clipped gradient, held-out rows."""
    monkeypatch.setenv("FT_CACHE", str(tmp_path / "cache"))
    return {
        "model": str(tiny_llama),
        "data": {
            "train": {"name": "tasks", "task": "family", "count": 12, "seed": 5},
            "eval": {"name": "tasks", "task": "family", "count": 4, "seed": 6},
            "renderer": "chatml",
        },
        "adapter": {"name": "lora", "rank": 4, "dropout": 0.1},
        "optimizer": {"name": "adamw", "learning_rate": 1e-2, "weight_decay": 0.1},
        "schedule": {"name": "cosine", "warmup_ratio": 0.3},
        "train": {
            "batch_size": 4,
            "epochs": 2,
            "precision": "fp32",
            "max_length": 256,
            "seed": 7,
            "max_grad_norm": 0.5,
        },
        "evaluate": {"evaluators": ["loss"]},
        "trackers": ["jsonl"],
    }


def trained(folder: Path) -> dict[str, np.ndarray]:
    return load_file(folder / "artifact" / "adapter_model.safetensors")


def lines(folder: Path, event: str, *names: str) -> list[list[Any]]:
    told = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [[line[name] for name in names] for line in told if line["event"] == event]


def at(url: str, **options: Any) -> Recipe:
    return {"backend": {"name": "remote", "url": url, **options}}


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"added_tokens": ["<call>"]}, "model.added_tokens: the base of a remote engine"),
        (
            {"loader": {"name": "transformers", "rope_scaling": {"rope_type": "linear", "factor": 2.0}}},
            "rope_scaling: the",
        ),
    ],
    ids=str,
)
def test_a_base_that_the_server_would_not_have_is_refused(recipe: Recipe, changes: Recipe, named: str) -> None:
    nowhere = at("http://127.0.0.1:9", patience=0.1)
    with pytest.raises(UserError, match=named):
        finetooth.run({**recipe, **nowhere, "model": {"name": recipe["model"], **changes}})


@pytest.mark.slow
def test_a_run_at_a_server_is_the_run_here_to_the_bit(apart: str, recipe: Recipe, tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    finetooth.run({**recipe, "output": str(here)})
    outcome = finetooth.run({**recipe, **at(apart), "output": str(there)})
    assert outcome.status == "done" and outcome.steps == 6
    want, have = trained(here), trained(there)
    assert want.keys() == have.keys() and all(np.array_equal(want[name], have[name]) for name in want)
    numbers = ("learning_rate", "grad_norm")
    assert lines(here, "step", *numbers) == lines(there, "step", *numbers)
    np.testing.assert_allclose(lines(here, "step", "loss"), lines(there, "step", "loss"), rtol=1e-6)
    evaluated = json.loads((here / "result.json").read_text())["metrics"]["eval/loss"]
    assert outcome.metrics["eval/loss"] == pytest.approx(evaluated, rel=1e-6)  # summed here, in another order
    ours = {file.name for file in (here / "artifact").iterdir()}
    assert {file.name for file in (there / "artifact").iterdir()} == ours | {"remote.json"}


STOP = """
import signal
from finetooth_hooks import hookimpl

@hookimpl
def ft_step(run, report):
    if report.step == 3:
        signal.raise_signal(signal.SIGINT)
"""


@pytest.mark.slow
def test_a_run_that_was_interrupted_goes_on_to_the_same_end(apart: str, recipe: Recipe, tmp_path: Path) -> None:
    (tmp_path / "stop.py").write_text(STOP)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    finetooth.run({**recipe, **at(apart), "output": str(whole)})
    stopping = {"plugins": [{"use": str(tmp_path / "stop.py")}], "output": str(broken)}
    assert finetooth.run({**recipe, **at(apart), **stopping}).status == "interrupted"
    assert resume(broken).status == "done"
    want, have = trained(whole), trained(broken)
    assert all(np.array_equal(want[name], have[name]) for name in want)
    kept = json.loads((broken / "artifact" / "remote.json").read_text())
    assert kept["url"] == apart and kept["step"] == 6
    opened = finetooth.engine({**recipe, **at(apart)})
    before = opened.generate([[5, 6, 7]], Sampling(max_tokens=4, temperature=0))
    opened.restore(broken / "artifact")
    assert opened.generate([[5, 6, 7]], Sampling(max_tokens=4, temperature=0)) != before


def test_the_primitives_equal_those_of_an_engine_here(apart: str, recipe: Recipe, tmp_path: Path) -> None:
    """With losses that the server never sees: one that needs pairs, and one that reads the reference."""
    session = finetooth.session({**recipe, **at(apart), "train": {**recipe["train"], "max_steps": 9}}, data=False)
    there = session.engine
    here = finetooth.engine({**recipe, "train": {**recipe["train"], "max_steps": 9}})
    rng = np.random.default_rng(0)
    data = [
        Datum.from_tokens(
            rng.integers(3, 999, size=9 + n), scalars={"label": float(n % 2)}, group=f"{n // 2}", id=f"{n}"
        )
        for n in range(4)
    ]
    dpo = session.job.context.loss({"name": "sigmoid", "beta": 0.5})
    plain = session.job.context.loss("cross_entropy")
    for loss in (plain, dpo, plain):
        have, want = there.forward_backward(data, loss), here.forward_backward(data, loss)
        assert have.loss == pytest.approx(want.loss, rel=1e-6)
        assert have.metrics == pytest.approx(want.metrics, rel=1e-5, abs=1e-6)
        a, b = there.step(), here.step()
        assert (a.step, a.learning_rate) == (b.step, b.learning_rate)
        assert a.grad_norm == pytest.approx(b.grad_norm, rel=1e-5)
    there.save(tmp_path / "there")
    handle = there.forward(data, plain).handle
    assert handle is not None and there.backward(handle).grad_norm > 0
    there.zero_grad()
    with pytest.raises(EngineError, match="no gradients"):
        there.step()
    there.forward_backward(data, plain)
    there.step()
    after = there.logprobs(data)
    there.load(tmp_path / "there")
    assert there.weights_version == 3
    there.forward_backward(data, plain)
    there.step()
    assert all(np.array_equal(x, y) for x, y in zip(after, there.logprobs(data), strict=True))
    for x, y in zip(there.logprobs(data, role="reference"), here.logprobs(data, role="reference"), strict=True):
        assert np.array_equal(x, y)
    with pytest.raises(EngineError, match="logprobs, not logits"):
        there.forward(data, returns=("logits",))
    with pytest.raises(UserError, match=r"no remote\.json"):
        there.restore(tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(find_spec("tinker") is None, reason="the package tinker is not installed")
def test_a_run_over_the_tinker_protocol_is_the_run_here(apart: str, recipe: Recipe, tmp_path: Path) -> None:
    plain = {**recipe, "adapter": {"name": "lora", "rank": 4, "alpha": 32}}
    here, there = tmp_path / "here", tmp_path / "there"
    finetooth.run({**plain, "output": str(here)})
    outcome = finetooth.run({**plain, **at(apart, protocol="tinker"), "output": str(there)})
    assert outcome.status == "done" and outcome.steps == 6
    np.testing.assert_allclose(lines(there, "step", "loss"), lines(here, "step", "loss"), rtol=1e-6)
    want = json.loads((here / "result.json").read_text())["metrics"]["eval/loss"]
    assert outcome.metrics["eval/loss"] == pytest.approx(want, rel=1e-6)
    kept = json.loads((there / "artifact" / "remote.json").read_text())["kept"]
    model, _, name = kept["sampler"].removeprefix("tinker://").split("/")
    with finetooth.Client(apart, patience=10) as client:
        (saved,) = [one.id for one in client.checkpoints(model) if one.name == name and one.kind == "weights"]
    content = httpx.get(f"{apart}/v1/checkpoints/{saved}/files/adapter_model.safetensors").content
    (tmp_path / "theirs").write_bytes(content)
    theirs = load_file(tmp_path / "theirs")
    for name, values in trained(here).items():
        np.testing.assert_allclose(theirs[name], values, atol=1e-6)


@pytest.mark.slow
def test_remote_is_an_option_of_run(
    apart: str, recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(json.dumps({**recipe, "output": str(tmp_path / "run")}))
    asked = ["run", str(file), "--remote"]
    wrong = [
        ("http://user:secret@127.0.0.1:1", "", "more than host, port and path"),
        ("127.0.0.1:8420", "", "not an http or https URL"),
        (apart, "backend.key=ft_a_secret", "not the name of a variable"),
        (apart, "backend.key=${NOT_THERE}", "NOT_THERE"),
        (apart, "backend.base=large", "does not serve 'large'"),
        (apart, "backend.protocol=tinker", "alpha 32"),
        (apart, "backend.key=${A_KEY}", "no valid API key"),
    ]
    monkeypatch.setenv("A_KEY", "ft_a_secret")
    for url, override, said in wrong:
        assert main([*asked, url, *([override] if override else [])]) == 2
        told = capsys.readouterr().err
        assert said in told and "secret" not in told and len(told.strip().splitlines()) == 1, (override, told)
    assert not list((tmp_path / "run").glob("[!.]*"))
    gc.collect()
    with finetooth.Client(apart, patience=10) as client:
        before = client.sessions()
        assert main([*asked, apart, "train.max_steps=1", "evaluate.evaluators=[]"]) == 0
        gc.collect()
        assert client.sessions() == before, "a run that is over holds no model at the server"
    assert apart in capsys.readouterr().out
    written = "".join(
        file.read_bytes().decode(errors="replace") for file in (tmp_path / "run").glob("*.*") if file.is_file()
    )
    assert "secret" not in written and apart in written
