"""A pretend accelerator: torch's device `pretend`, whose tensors lie on the CPU and never meet a host's.

An operation among whose tensors is one of the host's, but for numbers without dimensions, raises, as on a GPU. What a
GPU would wait for is counted: copies to the host, copies from pages that may move, and shapes that depend on values.

Not collected by itself: the device stays registered in the process. test_torch_pretend.py runs it.
"""

from __future__ import annotations

import sys
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from finetooth_hooks import Attention, AttentionServes
from finetooth_torch import passes
from torch.utils import backend_registration
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = "pretend:0"
aten = torch.ops.aten
ASKING = {aten._local_scalar_dense, aten.nonzero, aten.masked_select, aten.bincount, aten._unique2, aten.equal}
"""Operations whose result the host needs at once."""
INDEXING = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_}
WAITS: Counter[str] = Counter()
"""What a GPU would have waited for, and where."""
ON_THEIR_WAY: list[tuple[torch.Tensor, torch.Tensor]] = []
"""Copies to the host that nobody has waited for, and the numbers that they will have."""
ORDER: list[tuple[str, int]] = []
"""What the host has waited for or laid out, and how many operations the device had been given by then."""
OPERATIONS = Counter[str]()
WITHOUT_FLOAT64 = "without-float64" in sys.argv
"""The device refuses float64, as Apple's does."""


class Held(torch.Tensor):
    """A tensor of the device.

    Attributes:
        raw: its numbers, on the host.
    """

    raw: torch.Tensor

    @staticmethod
    def __new__(cls, raw: torch.Tensor, requires_grad: bool = False) -> Held:
        if WITHOUT_FLOAT64 and raw.dtype == torch.float64:
            raise TypeError("the MPS framework doesn't support float64")
        made = torch.Tensor._make_wrapper_subclass(
            cls, raw.size(), strides=raw.stride(), storage_offset=raw.storage_offset(), dtype=raw.dtype,
            device=torch.device(DEVICE), requires_grad=requires_grad,
        )  # fmt: skip
        made.raw = raw
        return made  # type: ignore[no-any-return]

    @property  # type: ignore[override]
    def data(self) -> torch.Tensor:
        return torch.Tensor.data.__get__(self)  # type: ignore[attr-defined,no-any-return]

    @data.setter
    def data(self, given: torch.Tensor) -> None:
        torch.Tensor.data.__set__(self, given)  # type: ignore[attr-defined]
        self.raw = raw(given)  # torch changes dtype and shape, and knows nothing of these numbers

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return computed(func, args, kwargs or {})


def raw(x: Any) -> Any:
    return x.raw if isinstance(x, Held) else x


def waits(what: str) -> None:
    """Count it, under the line of finetooth's that asked."""
    stack = [frame for frame in traceback.extract_stack() if "/finetooth_" in frame.filename]
    if stack and stack[-1].name == "placed":  # from pages that stay, on a GPU
        return
    where = f"{stack[-1].filename.rpartition('/')[2]}:{stack[-1].lineno}" if stack else "elsewhere"
    WAITS[f"{what} at {where}"] += 1
    ORDER.append(("wait", OPERATIONS.total()))
    while ON_THEIR_WAY:
        copy, numbers = ON_THEIR_WAY.pop()
        copy.copy_(numbers)


def moved(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """A copy to another device, or to another dtype on this one."""
    target = torch.device(kwargs.get("device") or args[0].device).type
    on_its_way = isinstance(args[0], Held) and target == "cpu" and kwargs.get("non_blocking")
    if isinstance(args[0], Held) and target == "cpu" and not on_its_way:
        waits("copy to the host")
    if not isinstance(args[0], Held) and target != "cpu" and not kwargs.get("non_blocking"):
        waits("copy to the device")
    found = func(raw(args[0]), **{**kwargs, "device": "cpu", "pin_memory": None} if "device" in kwargs else kwargs)
    if on_its_way:  # until somebody waits, anything may stand there
        ON_THEIR_WAY.append((torch.full_like(found, 113), found))
        return ON_THEIR_WAY[-1][0]
    return found if target == "cpu" else Held(found)


def computed(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """An operation on this device."""
    name = func.overloadpacket
    OPERATIONS[str(name)] += 1
    if name is aten._to_copy:
        return moved(func, args, kwargs)
    if name is aten.copy_:
        crosses = isinstance(args[0], Held) is not isinstance(args[1], Held)
        if crosses and not (*args[2:], False)[0] and args[0].numel():  # torch copies nothing of an empty tensor
            waits("copy to the device" if isinstance(args[0], Held) else "copy to the host")
        raw(args[0]).copy_(raw(args[1]))
        return args[0]
    tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
    for x in tensors:
        if not isinstance(x, Held) and x.dim() > 0:
            raise RuntimeError(f"{func}: a tensor of the host {tuple(x.shape)} among those of the device")
    if name in ASKING:
        waits(str(name))
    if name in INDEXING and any(isinstance(i, torch.Tensor) and i.dtype == torch.bool for i in args[1]):
        waits("index by a mask")
    if kwargs.get("device") is not None:
        kwargs = {**kwargs, "device": "cpu", **({"pin_memory": None} if "pin_memory" in kwargs else {})}
    found = func(*tree_map(raw, args), **tree_map(raw, kwargs))
    known = {id(x.raw): x for x in tensors if isinstance(x, Held)}

    def held(x: Any) -> Any:
        if not isinstance(x, torch.Tensor):
            return x
        return known[id(x)] if id(x) in known else Held(x)

    return tree_map(held, found)


class _Module(backend_registration._DummyBackendModule):  # type: ignore[name-defined,misc]
    def get_rng_state(self, device: Any = 0) -> torch.Tensor:
        return torch.zeros(16, dtype=torch.uint8)

    def set_rng_state(self, state: Any, device: Any = 0) -> None:
        pass

    def manual_seed(self, seed: int) -> None:
        pass

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]


def register() -> torch.library.Library:
    """Make the device known to this process."""
    backend_registration._setup_privateuseone_for_python_backend("pretend", backend_module=_Module())
    library = torch.library.Library("_", "IMPL")
    library.fallback(lambda op, *args, **kwargs: computed(op, args, kwargs), "PrivateUse1")
    return library


@contextmanager
def counting() -> Iterator[Counter[str]]:
    """What is waited for while entered."""
    for noted in (WAITS, ORDER, OPERATIONS):
        noted.clear()
    yield WAITS


def watch_layouts() -> None:
    """Note when micro-batches are laid out, and what waits for all that the device was given."""
    lay_out = passes.make_rectangle

    def noted(*given: Any, **named: Any) -> Any:
        ORDER.append(("layout", OPERATIONS.total()))
        return lay_out(*given, **named)

    passes.make_rectangle = noted
    torch.accelerator.synchronize = lambda device: waits("the end")  # type: ignore[assignment]


def ahead() -> float:
    """Operations that the device had been given since the host last waited for it when a micro-batch was laid out, the
    first one aside: the least, as a share of those of a micro-batch. While it computes them, the host lays out."""
    given, last = list[int](), 0
    for what, operations in ORDER:
        last = operations if what == "wait" else last
        if what == "layout":
            given.append(operations - last)
    return min(given[1:]) * len(given) / OPERATIONS.total()


class HostGenerator(torch.Generator):
    """Numbers of the host that say they are the device's, which has no generator of its own."""

    @property
    def device(self) -> torch.device:
        return torch.device(DEVICE)


def generator(device: Any = "cpu") -> Any:
    """What `torch.Generator` makes while the device is tried."""
    return _HOST() if torch.device(device).type == "cpu" else HostGenerator()


_HOST = torch.Generator


def engine_on_device(kit: Any, **asked: Any) -> Any:
    """An engine over the kit's tiny model, all of it on the device."""
    import finetooth_native.linear_groups as groups
    import finetooth_torchshared.plain_modules as plain
    import finetooth_torchshared.quantised as quantised
    from finetooth_torch.decoder import agreement, trial_layers

    class Adapter(kit.FakeAdapter):  # type: ignore[name-defined,misc]
        def apply(self, model: Any, facts: Any, generator: Any) -> Any:
            return super().apply(model, facts, generator).to(DEVICE)

    plain._UNPACKED = (*plain._UNPACKED, Held)  # type: ignore[assignment]
    quantised.is_quantised = lambda base: False
    for module in (agreement, trial_layers):  # the trial draws weights of its own, in float32
        module.is_plain_tensor = lambda of: of is not None and of.is_floating_point()  # type: ignore[assignment]
    torch.Generator = generator  # type: ignore[misc,assignment]
    make = torch.tensor  # which knows no device that is written in Python
    torch.tensor = lambda data, device=None, **more: make(data, **more).to(device)  # type: ignore[assignment]
    groups._fused = lambda weights: torch.cat([weight.detach() for weight in weights])  # views need one memory
    kit.CPU = replace(kit.CPU, devices=(replace(kit.CPU.devices[0], name=DEVICE, label="a pretend accelerator"),))
    eager = Attention(
        name="here", build="finetooth_eager.attention:build", summary="eager", rank=10, transformers="eager",
        serves=AttentionServes(
            devices=frozenset({"pretend"}), precisions=frozenset({"bf16", "fp32"}), segments="mask", fused=False
        ),
    )  # fmt: skip
    return kit.make_engine(
        adapter=Adapter(full=asked.pop("full", False), dropout=asked.pop("dropout", 0.0)), entries=(eager,), **asked
    )


def mixture(kit: Any) -> dict[str, Any]:
    """A tiny model of experts whose routers have losses, as settings of an engine."""
    import transformers
    from finetooth_qwen.family import Qwen

    sizes = {name: value for name, value in kit.tiny_config().to_dict().items() if name != "model_type"}
    sizes |= {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "mlp_only_layers": [0]}
    config = transformers.AutoConfig.for_model("qwen3_moe", **sizes, experts_implementation="eager")
    facts = Qwen().facts(config.to_dict())
    known = {name: getattr(facts, name) for name in ("per_layer", "attention", "linear_targets")}
    options = {"router_aux_loss_coef": 0.3, "router_z_loss_coef": 0.05}
    return {"config": config, "facts": known, "options": options, "can_disable": False}


def with_graphs(engine: Any) -> None:
    """Sample with graphs and without; print whether the numbers differ, and what a replayed step takes of the host."""
    from finetooth_hooks.engine import Sampling
    from finetooth_torch.device import graphs
    from recorded_graphs import RecordedGraphs

    class Counted(RecordedGraphs):
        def capture(self, compute: Any) -> Any:
            result, replay = super().capture(compute)

            def replayed() -> None:
                given = OPERATIONS.copy()
                replay()
                OPERATIONS.clear()
                OPERATIONS.update(given)
                steps.append((sum(WAITS.values()), OPERATIONS.total()))

            return result, replayed

    steps: list[tuple[int, int]] = []
    graphs.replays = lambda device: True
    network, told = engine._parts.network, []
    sampling = Sampling(max_tokens=21, temperature=1.0, top_p=0.9, seed=1, stop_ids=())
    for made in (None, Counted):
        network.compute = replace(network.compute, graphs=made)
        with counting():
            found = engine.generate([[5, 6, 7, 8], [9, 10, 11]], sampling)
        told.append([(one.tokens, one.logprobs) for of in found for one in of])
    between = [(waits - before[0], given - before[1]) for before, (waits, given) in pairwise(steps)]
    print("GRAPHS", told[0] == told[1], len(steps), max(between))


def main() -> None:
    """Train three steps, score and sample on the device and on the CPU; print what differs and what was waited for."""
    from finetooth_hooks.engine import Sampling
    from finetooth_torch import precision as precision_of_devices

    import conftest as kit

    if WITHOUT_FLOAT64:
        precision_of_devices.NARROW.add("pretend")
    kept = register()  # before autograd has counted the devices
    watch_layouts()
    decoder, precision, full = sys.argv[1], sys.argv[2], sys.argv[3] == "full"
    data, found = kit.make_data(12, longest=16), {}
    settings = {"decoder": decoder, "precision": precision, "max_grad_norm": 1.0}
    settings["kernels"] = {"stream_decoder": kit.picked_kernels()["stream_decoder"]}
    settings |= mixture(kit) if "mixture" in sys.argv else {}
    host = kit.make_engine(adapter=kit.FakeAdapter(full=full), **settings)
    device = engine_on_device(kit, full=full, **settings)
    for name, engine in (("host", host), ("device", device)):
        losses = []
        for _ in range(3):
            with counting() as waited:
                report = engine.forward_backward(data, kit.NLL)
                taken, shares = dict(waited), [ahead()] if name == "device" else []
            losses.append(report.loss)
            with counting() as waited:
                engine.step()
                of_step = dict(waited)
        found[name] = losses
    scored = []
    for engine in (host, device):
        with counting() as waited:
            outputs = engine.forward(data, returns=("logprobs", "entropy")).outputs
        scored.append(np.concatenate([of[name] for of in outputs for name in ("logprobs", "entropy")]))
    shares.append(ahead())
    with counting() as waited:
        tokens = [
            [list(one.tokens) for one in of] for of in
            device.generate([[5, 6, 7, 8], [9, 10, 11]], Sampling(max_tokens=21, temperature=1.0, seed=1, stop_ids=()))
        ]  # fmt: skip
        of_tokens = dict(waited)
    print("LOSSES", *(f"{x:.6f} {y:.6f}" for x, y in zip(found["host"], found["device"], strict=True)))
    print("CALL", sum(taken.values()), taken)
    print("MICRO-BATCHES", report.micro_batches)
    print("AHEAD", *shares)
    print("SCORED", float(np.abs(np.subtract(*scored)).max()))
    print("STEP", sum(of_step.values()), of_step)
    print("TOKEN", sum(of_tokens.values()) / 21, {k: round(v / 21, 2) for k, v in of_tokens.items()})
    print("SAMPLED", [len(one) for of in tokens for one in of])
    if "graphs" in sys.argv:
        with_graphs(device)
    del kept


if __name__ == "__main__":
    main()
