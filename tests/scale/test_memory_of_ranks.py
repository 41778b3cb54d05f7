"""Memory a rank: of `fsdp` with eight billion parameters over eight ranks, where nothing is computed, torch counts what
would be allocated, and `ft advise` says it before; and of `pipeline`, of what its ranks read."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, LlamaConfig

sys.path.insert(0, str(Path(__file__).parent))
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


@pytest.mark.slow
def test_a_stage_reads_its_own_layers(tmp_path: Path) -> None:
    """Two ranks of six layers each: of the others' no tensor, and memory for half of them. LoRA, so that what a rank
    holds is what it has read."""
    write_model(tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    config = json.loads(path.read_text(encoding="utf-8")) | {
        "hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": 12,
        "num_key_value_heads": 12, "head_dim": 64,
    }  # fmt: skip
    path.write_text(json.dumps(config), encoding="utf-8")
    AutoModelForCausalLM.from_config(LlamaConfig(**config)).save_pretrained(tmp_path / "model")
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
    of_layer = 4 * 16 * WIDTH**2  # bytes in fp32; one more stands for those of the other rank
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
    ("strategy", "held"),
    [
        ("ddp", ()),
        ("fsdp", ("weights", "gradients", "optimizer")),
        ("pipeline", ("layers",)),
        ("context", ("positions",)),
    ],
)
def test_a_check_says_what_each_rank_will_hold(folder: Path, strategy: str, held: tuple[str, ...]) -> None:  # noqa: F811
    """In a process that is no rank, and opens no line to others."""
    run = trained(folder, f"checked-{strategy}", 2, strategy, train={**RECIPE["train"], "max_steps": 1})
    assert check_foreseen(folder, run.name) == {"scale.ranks": "2", **{f"scale.{name}": "1/2" for name in held}}
