"""Memory a rank: of `fsdp` with eight billion parameters over eight ranks, where nothing is computed, torch counts what
would be allocated, and `ft advise` says it before; of `fsdp` while it loads; and of `pipeline`, of what its ranks
read."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaConfig

sys.path.insert(0, str(Path(__file__).parent))
from strategy_table import COLUMNS
from test_strategy_table import SCORE
from test_two_ranks import RECIPE, check_alike, folder, ft, trained  # noqa: F401 - folder is a fixture
from tiny import write_model, write_rows

CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 128256, "hidden_size": 4096,
    "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
    "head_dim": 128, "max_position_embeddings": 8192, "rms_norm_eps": 1e-5, "rope_theta": 500000.0,
    "hidden_act": "silu", "tie_word_embeddings": False, "bos_token_id": 0, "eos_token_id": 0,
}  # fmt: skip
"""Llama 3 8B."""
WORLD = 8
HELD = ("weights", "gradients", "optimizer", "gathered")
"""Parts of a plan but those that depend on the rows, which are one of 16 tokens here."""
COUNTED = f"""
import json, sys
import torch
import torch.distributed as dist
from finetooth_fsdp import strategy as fsdp
from finetooth_fsdp.options import FsdpOptions
from finetooth_torch.updates.scaler import LossScaler
from finetooth_torch.updates.sharded_parameters import DividedByTensor, ShardedParameters
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.fsdp2_mem_tracker import FSDPMemTracker
from torch.testing._internal.distributed.fake_pg import FakeStore
from transformers import LlamaConfig, LlamaForCausalLM
from types import SimpleNamespace

dist.init_process_group("fake", store=FakeStore(), rank=0, world_size={WORLD})
line = SimpleNamespace(rank=0, world={WORLD}, wrap=None, close=None)
line.open = lambda rank, device: line
strategy = fsdp.Fsdp(FsdpOptions(), line)
strategy.open(SimpleNamespace(world={WORLD}), "cpu")
fsdp.digest_of = lambda model: ""  # which reads numbers
with FakeTensorMode(allow_non_fake_inputs=True):
    model = LlamaForCausalLM(LlamaConfig(**json.load(open(sys.argv[1]))))
    model.gradient_checkpointing_enable({{"use_reentrant": False}})
    model.train()
    shapes = {{name: parameter.shape for name, parameter in model.named_parameters()}}
    sharded = strategy.sharding({WORLD}).shard(model, list(model.model.layers), "bf16")
    given = [torch.bfloat16] * len(shapes)
    parts = DividedByTensor(model, sharded)
    parameters = ShardedParameters(model, shapes, given, LossScaler(enabled=False), sharded=parts)
    optimizer = torch.optim.AdamW(parameters.masters, lr=1e-3, fused=True)
    score = sharded.computing(lambda ids: model(input_ids=ids).logits.float().mean())
    tracker = FSDPMemTracker(model, optimizer)
    with tracker:
        for _ in range(2):  # the state of the optimizer is there from the second on
            score(torch.zeros(1, 16, dtype=torch.long)).backward()
            parameters.collect()
            optimizer.step()
            parameters.zero_grad()
            tracker.reset_mod_stats()
print(sum(of["Total"] for of in tracker.get_tracker_snapshot("peak").values()))
"""


@pytest.mark.slow
def test_eight_billion_parameters_over_eight_ranks_take_what_the_plan_says(tmp_path: Path, tiny_llama: Path) -> None:
    """Within 5 %, and never more."""
    (tmp_path / "config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    for file in tiny_llama.glob("tokenizer*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    command = [sys.executable, "-c", COUNTED, str(tmp_path / "config.json")]
    counted = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert counted.returncode == 0, counted.stderr[-2000:]
    taken = int(counted.stdout.splitlines()[-1])
    command = [sys.executable, "-m", "finetooth", "advise", str(tmp_path), "--devices", str(WORLD), "--memory", "80GB"]
    said = subprocess.run([*command, "--json"], capture_output=True, text=True, timeout=600, check=True)
    ways = json.loads(said.stdout)["ways"]
    (of_rank,) = [way["strategies"]["fsdp"]["memory"]["parts"] for way in ways if way["recipe"]["adapter"] == "full"][
        :1
    ]
    planned = sum(of_rank[name] for name in HELD)
    print(f"\n{taken / 1e9:.2f} GB taken, {planned / 1e9:.2f} GB planned: {100 * (planned / taken - 1):+.1f} %")
    assert taken <= planned <= 1.05 * taken


NOTING = """
import json, os
from pathlib import Path
from finetooth_hooks import hookimpl
from finetooth_transformers.assembling import Tensors

NAMES, READ = [], Tensors.read
Tensors.read = lambda self, name: (NAMES.append(name), READ(self, name))[1]


@hookimpl
def ft_run_end(run, outcome):
    status = Path("/proc/self/status").read_text()
    peak = int(status.partition("VmHWM:")[2].split()[0]) * 1024
    Path(f"noted-{os.environ.get('RANK', 'alone')}.json").write_text(json.dumps({"names": NAMES, "peak": peak}))
"""
LAYERS, WIDTH = 12, 768
OF_LAYER = 16 * WIDTH**2
"""Numbers of a decoder layer, without its norms."""


def write_wide_model(path: Path, precision: str) -> None:
    """The tiny model with more and wider layers."""
    write_model(path)
    file = path / "config.json"
    config = json.loads(file.read_text(encoding="utf-8")) | {
        "hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": 12,
        "num_key_value_heads": 12, "head_dim": 64,
    }  # fmt: skip
    file.write_text(json.dumps(config), encoding="utf-8")
    model = AutoModelForCausalLM.from_config(LlamaConfig(**config))
    model.to(getattr(torch, precision)).save_pretrained(path)


ANONYMOUS = """
import json, os, threading
from pathlib import Path
from finetooth_hooks import hookimpl
from finetooth_torch import backend
from finetooth_torch.updates import sharded_parameters

load, divided = backend._load, sharded_parameters.divided
before = peak = 0
ended = threading.Event()


def taken():
    return int(Path("/proc/self/status").read_text().partition("RssAnon:")[2].split()[0]) * 1024


def watch():
    global peak
    while not ended.wait(0.002):
        peak = max(peak, taken())


def loading(*given):
    global before
    before = taken()
    threading.Thread(target=watch, daemon=True).start()
    return load(*given)


def dividing(*given):
    made = divided(*given)
    ended.set()
    return made


backend._load, sharded_parameters.divided = loading, dividing


@hookimpl
def ft_run_start(run):
    Path("anonymous-" + os.environ["RANK"]).write_text(str(peak - before))
"""
WHOLE = """
import os, threading
from pathlib import Path
from finetooth_fsdp.strategy import FullyShardedModel
from finetooth_hooks import hookimpl

divide, most, ended = FullyShardedModel.__init__, 0, threading.Event()


def dividing(self, *given):
    divide(self, *given)
    groups = [module._get_fsdp_state()._fsdp_param_group for module in self._modules]

    def watch():
        global most
        while not ended.wait(0.0005):
            most = max(most, sum(group.is_unsharded for group in groups if group is not None))

    threading.Thread(target=watch, daemon=True).start()


FullyShardedModel.__init__ = dividing


@hookimpl
def ft_run_end(run, outcome):
    ended.set()
    Path("whole-" + os.environ["RANK"]).write_text(str(most))
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the kernel is asked by /proc")
@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_ranks_load_their_parts_and_no_whole_model_each(tmp_path: Path, precision: str) -> None:
    """Full training under `fsdp`. In bf16, a file of bf16 is mapped, so its pages are there once for all ranks; in fp32
    it is read tensor by tensor into mapped files. What a rank takes for itself is its part in fp32, and a layer at a
    time: with what it imports, less than a whole model."""
    write_wide_model(tmp_path / "model", "bfloat16")
    write_rows(tmp_path)
    (tmp_path / "anonymous.py").write_text(ANONYMOUS, encoding="utf-8")
    recipe = {
        **RECIPE, "plugins": ["./anonymous.py"], "adapter": "full", "output": "run",
        "train": {**RECIPE["train"], "max_steps": 1, "precision": precision},
        "scale": {"devices": 2, "strategy": "fsdp"},
    }  # fmt: skip
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe), encoding="utf-8")
    done = ft(tmp_path, "run", "recipe.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    ranks = [int((tmp_path / f"anonymous-{rank}").read_text()) for rank in (0, 1)]
    whole = 4 * OF_LAYER * LAYERS
    print(f"\na whole model {whole / 2**20:.0f} MiB, taken {[round(taken / 2**20) for taken in ranks]}")
    assert all(whole / 2 <= taken < whole for taken in ranks)


@pytest.mark.slow
@pytest.mark.parametrize("adapter", ["full", {"name": "freeze", "layers": 2}, "lora"], ids=str)
def test_no_rank_gathers_the_model_in_a_run(tmp_path: Path, adapter: Any) -> None:
    """Where its engine tries how data share rows, trains, evaluates and saves: at most a layer, the next one, and what
    lies in none. The artifact is whole."""
    write_wide_model(tmp_path / "model", "bfloat16")
    write_rows(tmp_path)
    (tmp_path / "whole.py").write_text(WHOLE, encoding="utf-8")
    recipe = {
        **RECIPE, "plugins": ["./whole.py"], "adapter": adapter, "output": "run",
        "train": {**RECIPE["train"], "max_steps": 2, "precision": "bf16"}, "checkpoint": {"every": 1},
        "scale": {"devices": 2, "strategy": "fsdp"},
    }  # fmt: skip
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe), encoding="utf-8")
    done = ft(tmp_path, "run", "recipe.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    files = sorted((tmp_path / "run/artifact").glob("*.safetensors"))
    held = [name for file in files for name in load_file(file)]
    assert len(held) == (2 * 7 * LAYERS if adapter == "lora" else 9 * LAYERS + 2)
    assert [1 <= int((tmp_path / f"whole-{rank}").read_text()) <= 3 for rank in (0, 1)] == [True, True]


@pytest.mark.slow
@pytest.mark.parametrize("sampling", ["layers", "whole"])
def test_sampling_gathers_what_its_option_says(folder: Path, sampling: str) -> None:  # noqa: F811
    """grpo over a model of six layers takes the steps of one process either way. With `layers`, a rank has at most two
    of them at once, and what lies in none; the plan counts fewer bytes."""
    if not (folder / "deep").exists():
        write_model(folder / "deep")
        config = json.loads((folder / "deep/config.json").read_text(encoding="utf-8")) | {"num_hidden_layers": 6}
        AutoModelForCausalLM.from_config(LlamaConfig(**config)).save_pretrained(folder / "deep")
    (folder / "whole.py").write_text(WHOLE, encoding="utf-8")
    (folder / "rewards.py").write_text(SCORE, encoding="utf-8")
    changes = {**COLUMNS["grpo"][1], "model": "deep"}
    alone = trained(folder, "sampled-alone", 1, **changes)
    recipe = {**RECIPE, **changes, "plugins": ["./whole.py"], "output": f"sampled-{sampling}"}
    recipe["scale"] = {"devices": 2, "strategy": {"name": "fsdp", "sampling": sampling}}
    (folder / "sampled.yaml").write_text(json.dumps(recipe), encoding="utf-8")
    done = ft(folder, "run", "sampled.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    check_alike(alone, folder / f"sampled-{sampling}")
    whole = [int((folder / f"whole-{rank}").read_text()) == 7 for rank in (0, 1)]
    assert whole == [sampling == "whole"] * 2
    base, adapter = load_file(folder / "deep/model.safetensors"), next((alone / "artifact").glob("*.safetensors"))
    layers = sum(of.numel() for name, of in base.items() if "layers." in name)
    others = sum(of.numel() for of in (*base.values(), *load_file(adapter).values())) - layers
    plan = json.loads((folder / f"sampled-{sampling}" / "plan.json").read_text(encoding="utf-8"))
    planned = plan["memory"]["parts"]["gathered"]
    assert planned == pytest.approx(4 * (others + layers / (1 if sampling == "whole" else 3)), rel=0.02)


@pytest.mark.slow
def test_a_stage_reads_its_own_layers(tmp_path: Path) -> None:
    """Two ranks of six layers each: of the others' no tensor, and memory for half of them. LoRA, so that what a rank
    holds is what it has read."""
    write_wide_model(tmp_path / "model", "float32")
    write_rows(tmp_path)
    (tmp_path / "noting.py").write_text(NOTING, encoding="utf-8")
    train = {**RECIPE["train"], "max_steps": 2}
    for name, scale in (("one", {"devices": 1}), ("two", {"devices": 2, "strategy": "pipeline"})):
        recipe = {**RECIPE, "plugins": ["./noting.py"], "train": train, "output": name, "scale": scale}
        (tmp_path / f"{name}.yaml").write_text(json.dumps(recipe), encoding="utf-8")
        done = ft(tmp_path, "run", f"{name}.yaml")
        assert done.returncode == 0, done.stdout + done.stderr
    check_alike(tmp_path / "one", tmp_path / "two")
    alone, *ranks = (json.loads((tmp_path / f"noted-{of}.json").read_text()) for of in ("alone", "0", "1"))
    for rank, noted in enumerate(ranks):
        layers = {int(name.split(".")[2]) for name in noted["names"] if name.startswith("model.layers.")}
        assert layers == set(range(6 * rank, 6 * rank + 6))
        assert "model.embed_tokens.weight" in noted["names"]
    of_layer = 4 * OF_LAYER  # bytes in fp32; one more stands for those of the other rank
    print(f"\npeak of one process {alone['peak'] / 2**20:.0f} MiB, of ranks {[r['peak'] / 2**20 for r in ranks]}")
    assert all(alone["peak"] - noted["peak"] >= (LAYERS // 2 - 2) * of_layer for noted in ranks)


def check_foreseen(place: Path, name: str) -> dict[str, str]:
    """Holds what `ft check` says of a run against what its rank 0 planned; returns what each rank holds."""
    done = ft(place, "check", f"{name}.yaml", "--json", "output=elsewhere")
    assert done.returncode == 0, done.stdout + done.stderr
    plans = json.loads(done.stdout), json.loads((place / name / "plan.json").read_text(encoding="utf-8"))
    shares = [{of["setting"]: of["value"] for of in plan["decisions"] if "scale." in of["setting"]} for plan in plans]
    assert shares[0] == shares[1]
    parts = [{of: size for of, size in plan["memory"]["parts"].items() if of != "overhead"} for plan in plans]
    assert parts[0] == parts[1]  # overhead is of each process
    return shares[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("strategy", "ranks", "held"),
    [
        ("ddp", 2, ()),
        ("fsdp", 2, ("weights", "gradients", "optimizer")),
        ("pipeline", 2, ("layers",)),
        ("stages of tensor", 4, ("layers", "weights", "gradients", "optimizer")),
        ("context", 2, ("positions",)),
    ],
)
def test_a_check_says_what_each_rank_will_hold(folder: Path, strategy: str, ranks: int, held: tuple[str, ...]) -> None:  # noqa: F811
    """In a process that is no rank, and opens no line to others."""
    name = f"checked-{strategy.replace(' ', '-')}"
    trained(folder, name, ranks, strategy, train={**RECIPE["train"], "max_steps": 1})
    assert check_foreseen(folder, name) == {"scale.ranks": str(ranks), **{f"scale.{of}": "1/2" for of in held}}
