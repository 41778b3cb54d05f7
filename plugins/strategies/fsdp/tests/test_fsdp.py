"""The strategy by itself; that ranks train as one process does is in tests/scale."""

from __future__ import annotations

import json
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
from finetooth_fsdp.options import FsdpOptions, build
from finetooth_fsdp.strategy import Fsdp
from finetooth_fsdp.tensor import divide_layer, tensor_plan
from finetooth_hooks import PlanError
from finetooth_kit import parametrize_with_checks
from torch import nn
from transformers import GPT2Config, LlamaConfig, Phi3Config, PretrainedConfig, Qwen3Config


@parametrize_with_checks("finetooth_fsdp.plugin", installed=True)
def test_checks(check: Any) -> None:
    check()


@pytest.mark.parametrize(
    ("world", "options", "weights", "layers"),
    [
        (8, {}, 8, 1),
        (8, {"replicas": 2}, 4, 1),
        (8, {"tensor": 2}, 4, 2),
        (8, {"replicas": 2, "tensor": 4}, 1, 4),
        (8, {"context": 2}, 8, 1),
        (8, {"replicas": 0, "tensor": 2}, 1, 2),
        (8, {"replicas": 0, "context": 2}, 2, 1),
        (8, {"replicas": 2, "tensor": 2, "context": 2}, 2, 2),
    ],
)
def test_ranks_are_grouped(world: int, options: dict[str, int], weights: int, layers: int) -> None:
    chosen = FsdpOptions(**options)
    divided = Fsdp(chosen, SimpleNamespace(wrap=None, close=None)).sharding(world)  # type: ignore[arg-type]
    assert (divided.weights, divided.layers, divided.positions) == (weights, layers, options.get("context", 1))
    assert divided.optimizer == weights * layers


def test_a_rank_alone_trains_as_without_the_strategy() -> None:
    line: Any = SimpleNamespace(wrap=None, close=None, digest=lambda engine: f"of {engine}")
    alone = Fsdp(FsdpOptions(), line)
    divided = alone.sharding(1)
    assert divided.shard is None and divided.weights == divided.layers == divided.positions == 1
    assert alone.digest("the engine") == "of the engine"  # type: ignore[arg-type]


def test_ranks_that_make_no_groups_are_refused() -> None:
    with pytest.raises(PlanError, match="6 ranks do not make replicas=2 groups with tensor=2"):
        FsdpOptions(replicas=2, tensor=2).parts(6)


def with_config(config: PretrainedConfig) -> nn.Module:
    model = nn.Module()
    model.config = config  # type: ignore[assignment]
    return model


@pytest.mark.parametrize(
    ("config", "why"),
    [
        (GPT2Config(), "the model's family has no plan for it in transformers"),
        (Phi3Config(), "the plan of phi3 in transformers uses colwise_gather_output, rowwise_split_input"),
        (
            LlamaConfig(hidden_size=96, num_attention_heads=6, num_key_value_heads=3),
            "num_key_value_heads=3, which 2 ranks cannot share",
        ),
    ],
)
def test_a_model_that_cannot_be_divided_is_refused(config: PretrainedConfig, why: str) -> None:
    with pytest.raises(PlanError, match=why):
        tensor_plan(with_config(config), 2)
    context: Any = SimpleNamespace(model=SimpleNamespace(config=config.to_dict()), build=lambda *_, **__: None)
    with pytest.raises(PlanError, match=why):  # at `ft check`, by its config alone
        build(FsdpOptions(tensor=2), context)


def test_a_norm_over_each_head_is_refused_where_it_trains() -> None:
    """Its gradient is the sum over all heads, and each rank has some."""
    plan = tensor_plan(with_config(Qwen3Config()), 2)
    layer, attention = nn.Module(), nn.Module()
    layer.self_attn, attention.q_norm = attention, nn.LayerNorm(8)
    with pytest.raises(PlanError, match=r"self_attn.q_norm trains, and each rank sees some of the heads"):
        divide_layer(layer, plan, None)  # type: ignore[arg-type]
    attention.requires_grad_(False)
    divide_layer(layer, plan, None)  # type: ignore[arg-type]


COUNTED = """
import json, sys
from collections import Counter
from types import SimpleNamespace

import torch
import torch.distributed as dist
from finetooth_fsdp import strategy as fsdp
from finetooth_fsdp.options import FsdpOptions, build
from finetooth_hooks.protocols import Foreseen
from torch.distributed.distributed_c10d import _resolve_process_group
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaConfig, LlamaForCausalLM

world, options, trains, passes = 8, json.loads(sys.argv[1]), sys.argv[2], 3
dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=world)
line = SimpleNamespace(rank=0, world=world, wrap=None, close=None, barrier=None, broadcast=None)
line.open = lambda rank, device: line
strategy = fsdp.Fsdp(FsdpOptions(**options), line)
strategy.open(SimpleNamespace(world=world), "cpu")
size = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_key_value_heads": 2}
model = LlamaForCausalLM(LlamaConfig(vocab_size=32, num_hidden_layers=3, **size))
for name, parameter in model.named_parameters():
    parameter.requires_grad_(trains in name)
whole = sum(parameter.numel() for parameter in model.parameters())
outside = whole - sum(parameter.numel() for parameter in model.model.layers.parameters())
trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
sharded = strategy.sharding(world).shard(model, list(model.model.layers), "fp32")
score = sharded.computing(lambda ids: model(input_ids=ids).logits.float().mean())
given, calls = Counter(), Counter()


class Counting(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = str(function)
        if "c10d" in name and ("gather" in name or "reduce" in name):
            part = args[1] if "gather" in name else args[0]
            (part,) = part if isinstance(part, list) else [part]
            group = next((of for of in args if isinstance(of, torch.ScriptObject)), None)
            group = _resolve_process_group(args[2]) if group is None else dist.ProcessGroup.unbox(group)
            ranks = dist.get_process_group_ranks(group)
            key = "reduce" in name and "scatter" not in name, len(ranks), len(ranks) * (ranks[1] - ranks[0])
            given[key] += part.nbytes
            calls[key] += 1
        return function(*args, **(kwargs or {}))


with Counting():
    for _ in range(passes):
        score(torch.zeros(1, 4, dtype=torch.long)).backward()
run = Foreseen(4 * whole, 4 * outside, 3, passes, positions=4, hidden=32, linears=7)
said = strategy.traffic(trained, world, run=run)
for part in (said, *said.also):
    key = part.summed, part.peers, part.span or part.peers
    print(given.pop(key), calls[key], part.sent, part.calls)
assert not given, given
"""


@pytest.mark.slow
@pytest.mark.parametrize("trains", ["proj", ""])
@pytest.mark.parametrize(
    "options", [{}, {"keep_layers": True}, {"replicas": 2}, {"tensor": 2}, {"replicas": 2, "tensor": 2}], ids=str
)
def test_what_it_says_of_its_traffic_is_what_torch_sends(options: dict[str, int], trains: str) -> None:
    """Counted at the calls of torch.distributed, group by group, over ranks that compute nothing. What trains is all,
    or all linear modules of the layers, as with an adapter."""
    command = [sys.executable, "-c", COUNTED, json.dumps(options), trains]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    for line in done.stdout.splitlines():
        given, calls, said, waits = map(int, line.split())
        print(f"\n{options}: counted {given}, foretold {said}; calls {calls}, foretold {waits}")
        assert said == pytest.approx(given, rel=0.05) and calls <= waits
