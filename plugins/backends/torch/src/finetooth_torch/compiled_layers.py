"""Decoder layers of transformers compiled by torch, one region that all equal layers share (`backend.compile`).

A layer's class is replaced by one whose forward calls the compiled forward, so names of modules and weights stay, and
so do hooks on the layer and activation checkpointing, which surround it. Batch and length are unknown to the compiler
(`mark_unbacked`): it neither specialises the code for the sizes of the first micro-batch nor compiles again for others,
and the code does not depend on which sizes came first. Rows of one position, and layers
with a cache of keys (sampling), are computed uncompiled.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch
from finetooth_hooks import PlanError
from finetooth_torchshared.quantised import is_quantised
from torch import Tensor, nn

from finetooth_torch.planning.compilation import REGIONAL, SETTING

BACKEND = "inductor"
VARIANTS = 64
"""Most compilations of one piece of code: kinds of layers, training or not, with a graph or not, one row or several."""
OFF_ACTION = f"set {SETTING}: off"


def compile_layers(layers: Iterable[nn.Module]) -> None:
    """Make layers compute with compiled code, from their first call on.

    Args:
        layers: of a decoder, adapted, before anything observes their modules.

    Raises:
        PlanError: their code cannot be compiled: they drop at random, have hooks inside, or are stored in fewer bits.
    """
    if "min" not in inspect.signature(torch._dynamo.decorators.mark_unbacked).parameters:
        raise _refused(f"it needs torch 2.13 or newer, and {torch.__version__} is installed", OFF_ACTION)
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, VARIANTS)
    classes: dict[type, type] = {}
    for layer in layers:
        _check(layer)
        kind = type(layer)
        classes[kind] = classes.get(kind) or _compiled(kind)
        layer.__class__ = classes[kind]


def _check(layer: nn.Module) -> None:
    for path, module in layer.named_modules():
        if any("drop" in name and isinstance(share, float) and share > 0 for name, share in vars(module).items()) or (
            isinstance(module, nn.Dropout) and module.p > 0
        ):
            raise _refused(
                f"{path or type(layer).__name__} drops at random, which finetooth keys by example in code that torch "
                "cannot compile",
                "set its dropout to 0 (adapter.dropout, or attention_dropout of the model)",
            )
        if path and (module._forward_hooks or module._forward_pre_hooks):
            raise _refused(f"{path} in a layer has a hook", f"remove the hook, or {OFF_ACTION}")
    if is_quantised(layer):
        raise _refused("the base is stored in fewer bits, which torch does not compile", OFF_ACTION)


def _compiled(kind: type[nn.Module]) -> type[nn.Module]:
    """A class like `kind` whose forward is compiled."""

    def region(self: Any, *args: Any, **more: Any) -> Any:
        return kind.forward(self, *args, **more)

    # what a run repeats has the same bits only without trials of speed
    options = {"deterministic": True} if torch.are_deterministic_algorithms_enabled() else None
    computes: Callable[..., Any] = torch.compile(
        region, fullgraph=True, dynamic=True, backend=BACKEND, options=options  # type: ignore[arg-type]
    )  # fmt: skip

    @wraps(kind.forward)
    def forward(self: Any, *args: Any, **more: Any) -> Any:
        hidden = args[0] if args else more["hidden_states"]
        cached = more.get("past_key_values") is not None or more.get("past_key_value") is not None
        if cached or hidden.dim() != 3 or hidden.shape[1] < 2:
            return region(self, *args, **more)
        for tensor in _tensors((*args, *more.values())):
            _mark(tensor, hidden.shape[0], hidden.shape[1])
        with compiler_errors(kind.__name__):
            return computes(self, *args, **more)

    return type(kind.__name__, (kind,), {"forward": forward, "__module__": kind.__module__})


@contextmanager
def compiler_errors(what: str) -> Iterator[None]:
    """Turn what torch's compiler raises into a PlanError. It compiles the backward pass when that first runs.

    Args:
        what: is compiled, for the message.
    """
    try:
        yield
    except RuntimeError as error:
        dynamo = sys.modules.get("torch._dynamo.exc")  # never imported for those who do not compile
        if dynamo is None or not isinstance(error, dynamo.TorchDynamoException):
            raise
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        action = OFF_ACTION
        if isinstance(error, dynamo.BackendCompilerFailed):
            from torch._inductor.runtime.cache_dir_utils import cache_dir

            action += (
                f"; if a run was killed while it compiled, remove {cache_dir()}, where it may have left half a file"
            )
        raise _refused(f"torch cannot compile {what}: {lines[0]}", action) from error


def _mark(tensor: Tensor, rows: int, length: int) -> None:
    """Leave the compiler in the dark about rows and length: of (S, T, ...), and of a mask (S, 1, T, T)."""
    along = (2, 3) if tensor.dim() == 4 else (1,) if tensor.dim() in (2, 3) else ()
    sizes = [(0, rows, "rows"), *((axis, length, "length") for axis in along)]
    for axis, size, name in sizes:
        if along and size > 1 and tensor.shape[axis] == size:
            torch._dynamo.decorators.mark_unbacked(tensor, axis, shape_id=name, min=2)


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (tuple, list)):
            yield from _tensors(value)
        elif isinstance(value, dict):
            yield from _tensors(value.values())


def _refused(problem: str, action: str) -> PlanError:
    return PlanError(f"{SETTING}={REGIONAL}: {problem}", action=action)
