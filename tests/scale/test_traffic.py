"""What `ft simulate` says that ranks send is what they give to torch.distributed: in steps of runs over gloo, and of a
model over ranks that compute nothing."""

from __future__ import annotations

import json
import random
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, LlamaConfig

sys.path.insert(0, str(Path(__file__).parent))
from test_two_ranks import RECIPE, ft
from tiny import write_model

pytestmark = pytest.mark.slow
COUNTING = """
from collections import Counter

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d
from torch.utils._python_dispatch import TorchDispatchMode

BEHIND = ("_allgather_base_", "allgather_")
'''Operations whose second argument is what a rank gives. With others it is the first, or that is as large.'''


def size(given):
    if isinstance(given, torch.Tensor):
        return given.nbytes if given.is_floating_point() else 0
    return sum(map(size, given))


def members(args):
    for given in args:
        if isinstance(given, torch.ScriptObject) and "ProcessGroup" in str(given._type()):
            return dist.get_process_group_ranks(dist.ProcessGroup.unbox(given))
    (name,) = [given for given in args if isinstance(given, str) and given not in ("sum", "avg")]
    return dist.get_process_group_ranks(distributed_c10d._resolve_process_group(name))


class Counting(TorchDispatchMode):
    bytes = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        space, name, *_ = str(function).split(".")
        if "c10d" in space and name not in ("wait_tensor", "_wrap_tensor_autograd", "barrier", "recv_", "broadcast_"):
            given = size(args[name in BEHIND])
            if given:
                summed, peers = "reduce" in name and "scatter" not in name, len(members(args))
                if peers > 1:
                    self.bytes[summed, 2 if name == "send" else peers] += given
        return function(*args, **(kwargs or {}))

"""
PLUGIN = f"""
import json, os
from pathlib import Path
from finetooth_hooks import hookimpl
{COUNTING}
counting, steps = Counting(), []


@hookimpl
def ft_run_start(run):
    counting.__enter__()


@hookimpl
def ft_step(run, report):
    steps.append([[*key, given] for key, given in counting.bytes.items()])
    Path("sent-" + os.environ["RANK"]).write_text(json.dumps(steps))


@hookimpl
def ft_run_end(run, outcome):
    counting.__exit__(None, None, None)
"""
WORDS = ("plum", "pear", "lime", "date", "kiwi")
CASES: dict[str, dict[str, Any]] = {
    "ddp": {"name": "ddp"},
    "replicas": {"name": "fsdp", "replicas": 2},
    "tensor": {"name": "fsdp", "tensor": 2},
    "tensor and context": {"name": "fsdp", "tensor": 2, "context": 2, "transport": "gloo"},
    "context": {"name": "context", "size": 2, "transport": "gloo"},
    "pairs of stages": {"name": "pipeline", "stages": 2},
    "shared stages": {"name": "pipeline", "stages": 2, "shard": True, "transport": "gloo"},
    "stages of tensor": {"name": "pipeline", "tensor": 2, "transport": "gloo"},
    "stages of context": {"name": "pipeline", "context": 2, "transport": "gloo"},
    "four stages": {"name": "pipeline"},
}
OF_FIRST = ("shared stages", "stages of tensor", "stages of context")
"""Where rank 1 is of the first stage."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of four layers, and rows of equal length."""
    made = tmp_path_factory.mktemp("traffic")
    write_model(made / "model")
    file = made / "model/config.json"
    config = json.loads(file.read_text(encoding="utf-8")) | {"num_hidden_layers": 4}
    file.write_text(json.dumps(config), encoding="utf-8")
    AutoModelForCausalLM.from_config(LlamaConfig(**config)).save_pretrained(made / "model")
    draw = random.Random(1)
    said = [[" ".join(draw.choices(WORDS, k=count)) for count in (5, 7)] for _ in range(48)]
    rows = [
        {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]}
        for asked, answer in said
    ]
    (made / "even.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    (made / "counted.py").write_text(PLUGIN, encoding="utf-8")
    return made


def second_step(folder: Path, rank: int) -> Counter[tuple[bool, int]]:
    """Bytes that a rank gave, by whether they were summed and among how many ranks."""
    first, second = (
        Counter({(summed, peers): given for summed, peers, given in step})
        for step in json.loads((folder / f"sent-{rank}").read_text(encoding="utf-8"))
    )
    return second - first


@pytest.mark.parametrize(("case", "recomputes"), [*((case, False) for case in CASES), ("tensor and context", True)])
def test_steps_of_a_run_give_what_was_simulated(folder: Path, case: str, recomputes: bool) -> None:
    """Of rank 1, which is in the middle of four stages."""
    name = f"{case}-{recomputes}".replace(" ", "-")
    recipe = {
        **RECIPE, "plugins": ["./counted.py"], "adapter": "full", "output": name,
        "data": {"train": "even.jsonl", "renderer": "chatml"}, "optimizer": {"name": "adamw", "learning_rate": 1e-3},
        "train": {
            **RECIPE["train"], "batch_size": 16, "micro_batch_tokens": 160, "max_steps": 2,
            "gradient_checkpointing": recomputes,
        },
        "scale": {"devices": 4, "strategy": CASES[case]},
    }  # fmt: skip
    (folder / f"{name}.yaml").write_text(json.dumps(recipe), encoding="utf-8")
    said = ft(folder, "simulate", f"{name}.yaml", "--link", "1Gbit", "--steps", "1", "--json", "output=other")
    assert said.returncode == 0, said.stdout + said.stderr
    done = ft(folder, "run", f"{name}.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    counted = second_step(folder, 1)
    if case == "pairs of stages":  # the first hands states on, the last gradients, and none is in the middle
        counted[False, 2] += second_step(folder, 0)[False, 2]
    simulated = Counter[tuple[bool, int]]()
    for part in json.loads(said.stdout)["parts"]:
        if case in OF_FIRST and part["what"] == "gradients of hidden states":
            continue
        simulated[part["summed"], part["peers"]] += part["given"]
    print(f"\n{name}: counted {dict(counted)}, simulated {dict(simulated)}")
    assert simulated == {key: pytest.approx(counted[key], rel=0.05) for key in simulated}
    assert sum(given for key, given in counted.items() if key not in simulated) < 0.01 * counted.total()
