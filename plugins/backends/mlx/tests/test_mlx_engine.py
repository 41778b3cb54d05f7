"""What an engine does between steps, against formulas and transformers."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("mlx_lm", reason="mlx-lm is not installed")

from finetooth_hooks import Datum, EngineError, NotFinite, RecipeError, Sampling
from finetooth_hooks.engine import StepSettings
from finetooth_hooks.protocols import RoleRequest
from finetooth_kit.losses import WEIGHTED_NLL
from finetooth_mlx.adapters import FullAdapter, LoraAdapter, LoraOptions
from safetensors.numpy import load_file, save_file

DATA = [Datum.from_tokens(list(range(20, 32)), id="first"), Datum.from_tokens(list(range(40, 60)), id="second")]


def stepped(engine: Any, **settings: Any) -> dict[str, np.ndarray[Any, Any]]:
    """How far each weight moved in one step."""
    before = {name: np.array(array) for name, array in engine.weights().items()}
    engine.forward_backward(DATA, WEIGHTED_NLL)
    engine.step(settings=StepSettings(**settings))
    return {name: np.array(array) - before[name] for name, array in engine.weights().items()}


def test_a_step_takes_numbers_of_its_own(tmp_path: Path, write: Callable[..., Path], engine_of: Any) -> None:
    folder = write(tmp_path)
    plain, double, clipped = (
        stepped(engine_of(folder), **settings) for settings in ({}, {"learning_rate": 0.2}, {"max_grad_norm": 0.5})
    )
    norm = np.sqrt(sum(np.square(moved / 0.1).sum() for moved in plain.values()))
    assert norm > 0.6
    for name, moved in plain.items():
        np.testing.assert_allclose(double[name], 2 * moved, atol=1e-6)
        np.testing.assert_allclose(clipped[name], moved * 0.5 / norm, atol=1e-6)
    engine = engine_of(folder)
    decayed = stepped(engine, optimizer={"weight_decay": 0.5})
    again = stepped(engine_of(folder), optimizer={"weight_decay": 0.0})
    a = next(name for name in decayed if name.endswith("lora_a"))
    first = {name: np.array(array) for name, array in engine_of(folder).weights().items()}
    np.testing.assert_allclose(decayed[a] - again[a], -0.1 * 0.5 * first[a], atol=1e-6)
    for wrong, line in (({"beta": 0.9}, "has no option 'beta'"), ({"momentum": 1.5}, "momentum is 1.5")):
        engine.forward_backward(DATA, WEIGHTED_NLL)
        with pytest.raises(EngineError, match=line):
            engine.step(settings=StepSettings(optimizer=wrong))


def test_hidden_states_of_layers_are_those_of_transformers(
    tmp_path: Path, write: Callable[..., Path], engine_of: Any
) -> None:
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    folder = write(tmp_path)
    names = ("hidden:0", "hidden:0.5", "hidden:2")
    found = engine_of(folder, gradient_checkpointing=True).forward(DATA[:1], returns=names).outputs[0]
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        states = model(torch.tensor([DATA[0].tokens]), output_hidden_states=True).hidden_states
    for name, wanted in zip(names, states, strict=True):
        wanted = wanted[0].numpy()[: len(found[name])]
        assert np.abs(found[name] - wanted).max() < 1e-5 * np.abs(wanted).max(), name


def test_a_copy_is_kept_and_follows(tmp_path: Path, write: Callable[..., Path], engine_of: Any) -> None:
    (tmp_path / "m").mkdir()
    folder = write(tmp_path / "m")
    made = lambda: engine_of(folder, adapter=FullAdapter(), roles={"reference": RoleRequest()})  # noqa: E731
    engine = made()
    first = engine.logprobs(DATA)
    stepped(engine)
    assert all(np.array_equal(*pair) for pair in zip(engine.logprobs(DATA, role="reference"), first, strict=True))
    engine.move_role("reference", 1.0)
    moved = engine.logprobs(DATA, role="reference")
    assert all(np.array_equal(*pair) for pair in zip(moved, engine.logprobs(DATA), strict=True))
    stepped(engine)
    engine.save(tmp_path / "state")
    other = made()
    other.load(tmp_path / "state")
    assert all(np.array_equal(*pair) for pair in zip(other.logprobs(DATA, role="reference"), moved, strict=True))
    assert all(np.array_equal(*pair) for pair in zip(other.logprobs(DATA), engine.logprobs(DATA), strict=True))


@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_the_head_in_chunks_is_the_whole(
    tmp_path: Path, write: Callable[..., Path], engine_of: Any, monkeypatch: pytest.MonkeyPatch, penalty: float
) -> None:
    """A chunk of 3 positions, as a large vocabulary would have it."""
    folder, loss = write(tmp_path), replace(WEIGHTED_NLL, repetition_penalty=penalty)
    moved = []
    for chunk in (512, 3):
        monkeypatch.setattr("finetooth_mlx.network.MOST_POSITIONS", chunk)
        engine = engine_of(folder, micro_batch_tokens=64)
        before = {name: np.array(array) for name, array in engine.weights().items()}
        value = engine.forward_backward(DATA, loss).loss
        engine.step()
        moved.append([value, *(np.array(array) - before[name] for name, array in engine.weights().items())])
    assert all(np.allclose(one, other, rtol=1e-4, atol=1e-7) for one, other in zip(*moved, strict=True))


@pytest.mark.parametrize(("regex", "most"), [("(ab|[0-9]){2,9}", False), ("[^q]{1,40}", True)], ids=["few", "most"])
def test_what_a_form_left_is_what_is_drawn_from(
    tmp_path: Path, write: Callable[..., Path], engine_of: Any, regex: str, most: bool
) -> None:
    """Log-probabilities are those of a float64 softmax among the tokens that come with each one."""
    engine = engine_of(write(tmp_path))
    prompt = list(range(20, 30))
    sampling = Sampling(max_tokens=6, n=3, seed=1, temperature=0.7, regex=regex, drawn=True)
    seen = set()
    for answer in engine.generate([prompt], sampling)[0]:
        datum = Datum.from_tokens([*prompt, *answer.tokens], [0.0] * len(prompt) + [1.0] * len(answer.tokens))
        logits = np.array(engine.forward([datum], returns=("logits",), train=False).outputs[0]["logits"][datum.mask])
        for row, token, ids, said in zip(logits, answer.tokens, answer.kept, answer.drawn_logprobs, strict=True):
            lacking = ids[0] < 0
            seen.add(lacking)
            among = np.isin(np.arange(len(row)), [-1 - id_ for id_ in ids] if lacking else ids, invert=lacking)
            z = np.where(among, row.astype(np.float64) / 0.7, -np.inf)
            assert among[token] and said == pytest.approx(
                z[token] - np.log(np.exp(z - z.max()).sum()) - z.max(), abs=1e-4
            )
    assert (True in seen) is most


def test_answers_fit_a_schema(tmp_path: Path, write: Callable[..., Path], engine_of: Any) -> None:
    """Of random weights, which write no JSON by themselves."""
    folder = write(tmp_path)
    engine = engine_of(folder)
    schema = (
        '{"type": "object", "properties": {"n": {"enum": [1, 22]}}, "required": ["n"], "additionalProperties": false}'
    )
    prompts = [list(range(20, 30)), list(range(40, 45))]
    for answers in engine.generate(prompts, Sampling(max_tokens=40, n=3, seed=1, schema=schema)):
        assert all(json.loads(answer.text) in ({"n": 1}, {"n": 22}) and answer.stop == "stop" for answer in answers)
    with pytest.raises(EngineError, match=r"sampling\.schema"):
        engine.generate(prompts, Sampling(schema="[]"))
    with pytest.raises(EngineError, match="repetition_penalty is 0"):
        engine.generate(prompts, Sampling(repetition_penalty=0))


def test_adapters_of_other_ranks_are_held(tmp_path: Path, write: Callable[..., Path], engine_of: Any) -> None:
    """An artifact of rank 2 in an engine of rank 4, alone and twice with half of its weight, is itself."""
    (tmp_path / "m").mkdir()
    folder = write(tmp_path / "m")
    small = engine_of(folder, adapter=LoraAdapter(LoraOptions(rank=2)))
    for _ in range(3):
        stepped(small)
    small.export(tmp_path / "small")
    engine, greedy = engine_of(folder), Sampling(max_tokens=6, temperature=0.0, stop_ids=())
    batch = engine.running_batch()
    halves = [(tmp_path / "small", 0.5), (tmp_path / "small", 0.5)]
    for held in (tmp_path / "small", halves):
        batch.add(DATA[0].tokens, greedy, adapter=engine.hold(held))
    batch.add(DATA[0].tokens, greedy)
    written = [piece for _ in range(6) for piece in batch.step()]
    wanted, own = (of.generate([DATA[0].tokens], greedy)[0][0].logprobs for of in (small, engine))
    for request, logprobs in enumerate((wanted, wanted, own)):
        mine = [piece.logprob for piece in written if piece.request == request]
        assert mine == pytest.approx(logprobs, rel=1e-4)
    assert wanted != pytest.approx(own, rel=1e-4)
    dora = engine_of(folder, adapter=LoraAdapter(LoraOptions(rank=2, dora=True)))
    dora.export(tmp_path / "dora")
    assert engine.hold(tmp_path / "dora") is None and "adapters" not in dora.capabilities


@pytest.mark.parametrize("module", ["model.layers.1.self_attn.q_proj", "lm_head"])
def test_dora_refuses_weights_without_a_direction(
    tmp_path: Path, write: Callable[..., Path], engine_of: Any, module: str
) -> None:
    """The row of a pad token is 0 in many models: DoRA divides by its length, and all losses would be nan."""
    file = write(tmp_path) / "model.safetensors"
    tensors = {name: np.array(array) for name, array in load_file(file).items()}
    tensors[f"{module}.weight"][5] = 0
    save_file(tensors, file, metadata={"format": "pt"})
    adapter = LoraAdapter(LoraOptions(rank=2, dora=True, targets=[module.rpartition(".")[2]]))
    with pytest.raises(RecipeError, match=rf"^adapter\.dora: all weights of output 5 of {module} are 0, so"):
        engine_of(tmp_path, adapter=adapter)


def test_scores_of_nan_name_their_rows(tmp_path: Path, write: Callable[..., Path], engine_of: Any) -> None:
    """Of a measurement; a training step names them as one whose loss is not finite."""
    file = write(tmp_path) / "model.safetensors"
    tensors = {name: np.array(array) for name, array in load_file(file).items()}
    tensors["model.embed_tokens.weight"][45] = np.nan  # a token of the second row alone
    save_file(tensors, file, metadata={"format": "pt"})
    engine = engine_of(tmp_path)
    for call in (engine.logprobs, lambda data: engine.forward(data, returns=("entropy",), train=False)):
        with pytest.raises(NotFinite, match="are not finite, with the data 'second'") as caught:
            call(DATA)
        assert caught.value.rows == ("second",)
    assert np.isfinite(engine.logprobs(DATA[:1])[0]).all()
    with pytest.raises(NotFinite, match="loss 'kit:weighted_nll' is nan"):
        engine.forward_backward(DATA, WEIGHTED_NLL)


@pytest.mark.parametrize("given", [{}, {"adapter": FullAdapter(), "precision": "bf16"}], ids=["lora", "full-bf16"])
def test_each_call_may_come_from_another_thread(
    tmp_path: Path, write: Callable[..., Path], engine_of: Any, given: dict[str, Any]
) -> None:
    """As a server's calls do. MLX computes what a thread left open in that thread alone."""
    (tmp_path / "m").mkdir()
    folder = write(tmp_path / "m")

    def apart(call: Callable[[], Any]) -> Any:
        with ThreadPoolExecutor(1) as thread:
            return thread.submit(call).result()

    def scores(call: Callable[[Callable[[], Any]], Any]) -> Any:
        engine = call(lambda: engine_of(folder, roles={"reference": RoleRequest()}, **given))
        call(engine.snapshot)
        for _ in range(2):
            call(lambda: engine.forward_backward(DATA, WEIGHTED_NLL))
            call(engine.step)
        call(lambda: engine.save(tmp_path / "state"))
        call(lambda: engine.logprobs(DATA, role="reference"))
        call(lambda: engine.move_role("reference", 0.5))
        call(lambda: engine.load(tmp_path / "state"))
        call(lambda: engine.set_weights({name: array + 0 for name, array in engine.weights().items()}))
        call(lambda: engine.export(tmp_path / "artifact"))
        call(lambda: engine.restore(tmp_path / "artifact"))
        batch = call(engine.running_batch)
        call(lambda: batch.add([5, 6], Sampling(max_tokens=2, temperature=0.0)))
        call(batch.step)
        return [of.tolist() for of in call(lambda: engine.logprobs(DATA))]

    assert scores(apart) == scores(lambda call: call())


@pytest.mark.parametrize(
    ("said", "asked"),
    [
        ("[METAL] Command buffer execution failed: Insufficient Memory (00000008:kIOGPUCommandBufferCallbackError"
         "OutOfMemory)", ""),
        ("[metal::malloc] Attempting to allocate 5368709120 bytes which is greater than the maximum allowed buffer "
         "size of 4294967296 bytes.", ", asking for 5.37 GB more"),
        ("[malloc] Unable to allocate 5368709120 bytes.", ", asking for 5.37 GB more"),
    ],
)  # fmt: skip
def test_memory_that_runs_out_is_one_line(
    tmp_path: Path, write: Callable[..., Path], engine_of: Any, monkeypatch: pytest.MonkeyPatch, said: str, asked: str
) -> None:
    """What Metal and MLX's allocators raise (mlx/backend/metal/{device,allocator}.cpp); no Mac raises it here. The
    engine computes on, with the weights of the last whole step and no gradient of the call that failed."""
    engine = engine_of(write(tmp_path), micro_batch_tokens=64)
    body, calls = engine._network.body, []

    def full(*given: Any, **more: Any) -> Any:
        calls.append(given)
        if len(calls) == 2:
            raise RuntimeError(said)
        return body(*given, **more)

    engine.forward_backward(DATA, WEIGHTED_NLL)
    engine.step()
    before = {name: np.array(array) for name, array in engine.weights().items()}
    monkeypatch.setattr(engine._network, "body", full)
    long = Datum.from_tokens([20 + i % 40 for i in range(60)], id="rows.jsonl:7")
    with pytest.raises(EngineError) as caught:
        engine.forward_backward([*DATA, long], WEIGHTED_NLL)
    line = str(caught.value)
    assert f"forward_backward ran out of memory at step 2{asked}: the process held" in line and "\n" not in line
    assert "longest row 59 tokens (rows.jsonl:7)" in line
    assert "in this order: lower train.micro_batch_tokens from 64 to 59; set train.gradient_checkpointing=true" in line
    assert all(np.array_equal(before[name], array) for name, array in engine.weights().items())
    with pytest.raises(EngineError, match="no gradients were accumulated"):
        engine.step()
    engine.forward_backward([*DATA, long], WEIGHTED_NLL)
    assert engine.step().step == 2
    monkeypatch.setattr(engine._network, "body", lambda *_, **__: (_ for _ in ()).throw(RuntimeError("shapes differ")))
    with pytest.raises(RuntimeError, match="shapes differ"):
        engine.logprobs(DATA)
