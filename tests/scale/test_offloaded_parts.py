"""Where `fsdp` keeps and moves what it divides: counted over four simulated ranks on a pretended device, whose tensors
have no numbers. That the numbers are those of one process is in test_strategy_table.py."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

WIDTH, LAYERS, WORLD = 32, 3, 4
NUMBERS = (LAYERS + 2) * WIDTH**2
"""Of the layers, and of a head that is twice as wide."""
COUNTED = f"""
import json, sys
from collections import Counter
from types import SimpleNamespace

import torch
import torch.distributed as dist
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.fsdp._fully_shard import _fsdp_collectives, _fsdp_init, _fsdp_param_group, _fsdp_state
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from finetooth_fsdp import strategy as fsdp
from finetooth_fsdp.options import FsdpOptions
from finetooth_torch.updates.scaler import LossScaler
from finetooth_torch.updates.sharded_parameters import DividedByTensor, ShardedParameters

offload, precision = json.loads(sys.argv[1]), sys.argv[2]
device = "pretend:0"


class Module(backend_registration._DummyBackendModule):
    pass


class Handle:
    Stream, Event = torch.cpu.Stream, torch.cpu.Event
    current_stream, stream = staticmethod(torch.cpu.current_stream), staticmethod(torch.cpu.stream)
    current_device = staticmethod(lambda: 0)


backend_registration._setup_privateuseone_for_python_backend("pretend", backend_module=Module())
for module in (_fsdp_collectives, _fsdp_init, _fsdp_param_group, _fsdp_state):
    module._get_device_handle = lambda kind: Handle
torch.accelerator.set_device_index = lambda index: None
fsdp.digest_of = lambda model: ""  # which reads numbers
dist.init_process_group("fake", store=FakeStore(), rank=0, world_size={WORLD})
line = SimpleNamespace(rank=0, world={WORLD}, wrap=None, close=None)
line.open = lambda rank, device: line
strategy = fsdp.Fsdp(FsdpOptions(offload=offload), line)
strategy.open(SimpleNamespace(world={WORLD}), device)
computed_on, exchanged_on, copied = set(), set(), Counter()


class Layer(nn.Linear):
    def forward(self, states):
        computed_on.add(self.weight.device.type)
        return super().forward(states)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        made = dict(bias=False, device=device)
        self.layers = nn.ModuleList(Layer({WIDTH}, {WIDTH}, **made) for _ in range({LAYERS}))
        self.head = nn.Linear({WIDTH}, {2 * WIDTH}, **made)

    def forward(self, states):
        for layer in self.layers:
            states = layer(states)
        return self.head(states)


class Watching(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if "c10d" in str(function):
            exchanged_on.update(of.device.type for of in tree_leaves(args) if isinstance(of, torch.Tensor))
        if "_to_copy" in str(function) and kwargs.get("device") and kwargs["device"].type != args[0].device.type:
            copied[args[0].device.type + " to " + kwargs["device"].type] += args[0].nbytes
        return function(*args, **(kwargs or {{}}))


def places(tensors):
    return sorted({{of.device.type for of in tensors if of.dim()}})


with FakeTensorMode(allow_non_fake_inputs=True):
    model = Model()
    shapes = {{name: parameter.shape for name, parameter in model.named_parameters()}}
    sharded = strategy.sharding({WORLD}).shard(model, list(model.layers), precision)
    parts = DividedByTensor(model, sharded)
    given = [torch.bfloat16] * len(shapes)
    parameters = ShardedParameters(model, shapes, given, LossScaler(enabled=False), sharded=parts)
    optimizer = torch.optim.AdamW(parameters.masters, lr=1e-3)
    score = sharded.computing(lambda states: model(states).float().mean())
    dtype = {{"bf16": torch.bfloat16, "fp32": torch.float32}}[precision]
    with Watching():
        score(torch.zeros(1, {WIDTH}, dtype=dtype, device=device)).backward()
        parameters.collect()
    of_pass = dict(copied)
    with Watching():
        try:
            parameters.norm()  # whose sum is asked for
        except Exception as error:
            assert "DataDependent" in type(error).__name__, error
        optimizer.step()
        state = [of for entries in optimizer.state.values() for of in entries.values()]
        whole = parameters.whole(dict(parameters.named()))
        own = parameters.own({{name: torch.zeros(shape) for name, shape in shapes.items()}})
    print(json.dumps({{
        "weights": places(parameters.masters), "gradients": places(of.grad for of in parameters.masters),
        "optimizer": places(state), "saved": places(whole.values()), "restored": places(own.values()),
        "computes": sorted(computed_on), "exchanges": sorted(exchanged_on), "copied": of_pass,
    }}))
"""


def counted(precision: str, *, offload: bool) -> dict[str, Any]:
    command = [sys.executable, "-c", COUNTED, json.dumps(offload), precision]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    said: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return said


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_parts_wait_on_the_host_and_are_gathered_on_the_device(precision: str) -> None:
    """Of a pass, a rank's part comes to the device once for each gather (before the forward and the backward pass), and
    its part of the gradients goes back in fp32. Nothing else is copied, and ranks exchange on their devices alone."""
    said = counted(precision, offload=True)
    moved = said.pop("copied")
    on_host = {name: ["cpu"] for name in ("weights", "gradients", "optimizer", "saved", "restored")}
    assert said == {**on_host, "computes": ["pretend"], "exchanges": ["pretend"]}
    of_rank = 4 * NUMBERS // WORLD
    print(f"\n{of_rank} bytes of a rank, copied {moved}")
    assert moved == {"cpu to pretend": 2 * of_rank, "pretend to cpu": of_rank}


@pytest.mark.slow
def test_without_the_option_everything_stays_on_the_device() -> None:
    said = counted("bf16", offload=False)
    assert said.pop("saved") == ["cpu"] and said.pop("copied") == {}
    assert set(map(tuple, said.values())) == {("pretend",)}
