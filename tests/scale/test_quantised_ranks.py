"""A base in fewer bits that ranks divide under `fsdp`: they take the steps of one process over the same base."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaConfig

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "bits"))
from test_two_ranks import RECIPE, check_alike, folder, ft, steps  # noqa: F401 - folder is a fixture
from tiny import write_model, write_rows

HELD = """
import json, os
from pathlib import Path
from finetooth_fsdp.strategy import FullyShardedModel
from finetooth_hooks import hookimpl
from finetooth_torchshared.quantised import QuantisedLinear

divide, held = FullyShardedModel.__init__, {}


def dividing(self, model, *given):
    divide(self, model, *given)
    modules = [of for of in model.modules() if isinstance(of, QuantisedLinear)]
    rows = [of for module in modules for of in module.parameters(recurse=False)]
    buffers = [name for module in modules for name, of in module.named_buffers() if name != "bias"]
    held.update(
        whole=sum(of.numel() for of in rows), part=sum(of.to_local().nbytes for of in rows),
        modules=len(modules), buffers=len(buffers),
    )


FullyShardedModel.__init__ = dividing


@hookimpl
def ft_run_start(run):
    Path("held-" + os.environ.get("RANK", "alone")).write_text(json.dumps(held))
"""
"""Writes what each rank has of a base."""
LIVE = """
import gc, json, os
from pathlib import Path
import torch
from finetooth_fsdp import strategy
from finetooth_hooks import hookimpl
from finetooth_torch import backend
from finetooth_torch.offload.mapped_memory import is_clean, mappings
from finetooth_torchshared import assembled

load, stored_linear, put_in_rows = backend._load, assembled.stored_linear, strategy.put_in_rows
stored, largest, taken = {}, 0, []


def look():
    held = {}
    for of in gc.get_objects():
        if type(of) in (torch.Tensor, torch.nn.Parameter) and of.device.type == "cpu":
            storage = of.detach().untyped_storage()
            held[storage.data_ptr()] = torch.empty(0, dtype=torch.uint8).set_(storage)
    mapped = mappings()
    taken.append(sum(of.nbytes for of in held.values() if of.nbytes < 4096 or not is_clean(of, mapped)))


def loading(*given):
    look()
    return load(*given)


def storing(path, module, *given):
    global largest
    made = stored_linear(path, module, *given)
    stored[path] = sum(of.nbytes for name, of in made.named_buffers() if name != "bias")
    largest = max(largest, stored[path] + module.weight.nbytes)
    if path.endswith("down_proj"):
        look()
    return made


def putting(module):
    put_in_rows(module)
    look()


backend._load, assembled.stored_linear, strategy.put_in_rows = loading, storing, putting


@hookimpl
def ft_run_start(run):
    peak = max(taken) - taken[0]
    Path("live-" + os.environ["RANK"]).write_text(json.dumps([peak, sum(stored.values()), largest, len(stored)]))
"""
"""Writes the most bytes of tensors that a rank has in memory of its own while it reads its base and divides it, more
than before: where the last module of a layer has been stored, and where a layer has been made rows; and what all
modules store."""
LAYERS = 12
ADAPTER = LAYERS * (4 * 256 + 3 * 512) * 4
"""Bytes of a LoRA of rank 1 in fp32."""
TRAIN = {**RECIPE["train"], "max_steps": 4, "epochs": 2}
STRATEGIES: dict[str, dict[str, Any]] = {
    "fsdp": {"devices": 2, "strategy": "fsdp"},
    "fsdp, replicas: 2, offload: true": {"devices": 4, "strategy": {"name": "fsdp", "replicas": 2, "offload": True}},
    "fsdp, context: 2": {"devices": 2, "strategy": {"name": "fsdp", "context": 2}},
}


def run(place: Path, name: str, quantization: Any, scale: dict[str, Any] | None = None, **changes: Any) -> Path:
    """Train, unless it was trained before."""
    made = place / "".join(letter if letter.isalnum() else "-" for letter in name)
    if (made / "artifact").exists():
        return made
    recipe = {**RECIPE, "schedule": "constant", "train": TRAIN, "quantization": quantization, **changes}
    if scale is not None:
        (place / "held.py").write_text(HELD, encoding="utf-8")
        recipe |= {"scale": scale, "plugins": ["./held.py"]}
    (place / "quantised.yaml").write_text(json.dumps({**recipe, "output": made.name}), encoding="utf-8")
    done = ft(place, "run", "quantised.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    return made


def without(package: str) -> Any:
    return pytest.mark.skipif(importlib.util.find_spec(package) is None, reason=f"needs {package}")


def check_held(place: Path, ranks: int, parts: int) -> None:
    """Ranks of a model hold equal parts of all that is stored, up to the ends of rows, and nothing of it twice."""
    held = [json.loads((place / f"held-{rank}").read_text(encoding="utf-8")) for rank in range(ranks)]
    whole, modules, shares = held[0]["whole"], held[0]["modules"], [of["part"] for of in held]
    print(f"\n{whole} bytes are stored, of which ranks have {shares}")
    assert modules == 14 and not any(of["buffers"] for of in held)
    assert sum(shares) == whole * ranks // parts and max(shares) <= whole / parts + modules


@pytest.mark.slow
@pytest.mark.parametrize(
    "form",
    [
        pytest.param("nf4", marks=without("bitsandbytes")),
        "int8",
        "hqq",
        "gptq",
        pytest.param("nvfp4", marks=without("torchao")),
    ],
)
def test_ranks_over_a_base_in_fewer_bits_train_as_one_process(folder: Path, form: str) -> None:  # noqa: F811
    """Each format has buffers of its own. The artifact is the adapter alone."""
    one, two = run(folder, f"one-{form}", form), run(folder, f"two-{form}", form, STRATEGIES["fsdp"])
    check_alike(one, two)
    check_held(folder, 2, 2)
    kept = [load_file(next((of / "artifact").glob("*.safetensors"))) for of in (one, two)]
    assert kept[0].keys() == kept[1].keys() and len(kept[1]) == 2 * 14 and all("lora_" in name for name in kept[1])
    far = max(float((kept[0][name] - kept[1][name]).abs().max()) for name in kept[0])
    losses = [abs(a["loss"] - b["loss"]) for a, b in zip(steps(one), steps(two), strict=True)]
    print(f"\n{form}: losses differ by {losses}, weights by {far}")


@pytest.mark.slow
@pytest.mark.parametrize(("strategy", "parts"), [("fsdp, replicas: 2, offload: true", 2), ("fsdp, context: 2", 2)])
def test_groups_of_ranks_over_a_base_in_fewer_bits(folder: Path, strategy: str, parts: int) -> None:  # noqa: F811
    scale = STRATEGIES[strategy]
    check_alike(run(folder, "one-int8", "int8"), run(folder, strategy, "int8", scale))
    check_held(folder, scale["devices"], parts)


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1)])
def test_a_run_over_a_base_in_fewer_bits_resumes(folder: Path, before: int, after: int) -> None:  # noqa: F811
    """Two steps of some ranks and two of others are four of one process."""
    short = {"train": {**TRAIN, "max_steps": 2}, "checkpoint": {"every": 1}}
    begun = run(folder, f"{before} then {after}", "int8", STRATEGIES["fsdp"] if before == 2 else None, **short)
    scale = ["scale.devices=2", "scale.strategy=fsdp"] if after == 2 else ["scale.devices=1"]
    done = ft(folder, "resume", str(begun), "train.max_steps=4", *scale)
    assert done.returncode == 0, done.stdout + done.stderr
    check_alike(run(folder, "one-int8", "int8"), begun)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["pipeline", {"name": "fsdp", "tensor": 2}], ids=str)
def test_a_strategy_that_needs_plain_numbers_is_refused(folder: Path, strategy: Any) -> None:  # noqa: F811
    recipe = {**RECIPE, "quantization": "int8", "output": "refused", "scale": {"devices": 2, "strategy": strategy}}
    (folder / "refused.yaml").write_text(json.dumps(recipe), encoding="utf-8")
    done = ft(folder, "check", "refused.yaml")
    assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert "scale.strategy: it divides the model among ranks: the base's weights are stored in fewer bits (int8" in (
        done.stderr
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "form",
    [pytest.param("nf4", marks=without("bitsandbytes")), "int8"],
)
@pytest.mark.parametrize("ranks", [2, 4])
def test_a_rank_reads_no_more_of_a_base_in_fewer_bits_than_its_part(tmp_path: Path, form: str, ranks: int) -> None:
    """In memory of its own: its part of what is stored, and a layer, or a module as it is read. Embeddings, which stay
    plain numbers, lie in mapped files until they are divided."""
    write_model(tmp_path / "model")
    file = tmp_path / "model/config.json"
    config = json.loads(file.read_text(encoding="utf-8")) | {
        "hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": LAYERS, "num_attention_heads": 4,
        "num_key_value_heads": 4, "head_dim": 32, "vocab_size": 20_000,
    }  # fmt: skip
    file.write_text(json.dumps(config), encoding="utf-8")
    AutoModelForCausalLM.from_config(LlamaConfig(**config)).save_pretrained(tmp_path / "model")
    write_rows(tmp_path)
    (tmp_path / "live.py").write_text(LIVE, encoding="utf-8")
    recipe = {
        **RECIPE, "quantization": form, "plugins": ["./live.py"], "output": "run",
        "adapter": {"name": "lora", "rank": 1},
        "train": {**RECIPE["train"], "max_steps": 1}, "scale": {"devices": ranks, "strategy": "fsdp"},
    }  # fmt: skip
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe), encoding="utf-8")
    done = ft(tmp_path, "run", "recipe.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    for rank in range(ranks):
        peak, stored, largest, modules = json.loads((tmp_path / f"live-{rank}").read_text(encoding="utf-8"))
        print(f"\n{form}, rank {rank} of {ranks}: at most {peak} bytes of its own, {stored} are stored in all")
        assert modules == 7 * LAYERS
        most = stored / ranks + stored / LAYERS + largest + ADAPTER
        assert stored / ranks < peak < most < stored
