"""A stand-in for a GPU's graphs: torch's operations, recorded with their very tensors and done again into the same.

As on a GPU, a capture changes nothing, and a replay knows nothing but the content of tensors: a number of the host that
went into the step stays what it was at the capture. An operation that a GPU could not capture raises.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

aten = torch.ops.aten
ON_HOST = {
    *(aten._local_scalar_dense, aten.nonzero, aten.masked_select, aten.bincount, aten._unique2, aten.equal),
    *(aten.is_nonzero, aten.repeat_interleave, aten.lift_fresh),
}
"""The host must know the result's shape, the result, or makes a tensor of its own numbers."""
MAKING = {aten.empty, aten.new_empty, aten.empty_like, aten.empty_strided, aten.new_empty_strided}
SPOILED = 113


def tensors(tree: Any) -> list[Tensor]:
    """All but packed weights of oneDNN, which nothing writes."""
    return [x for x in tree_leaves(tree) if isinstance(x, Tensor) and x.layout == torch.strided]


def memory(x: Tensor) -> Tensor:
    """All bytes of the memory in which a tensor lies; `raw` is a pretend device's."""
    return torch.empty(0, dtype=torch.uint8).set_(getattr(x, "raw", x).untyped_storage())


class Recorder(TorchDispatchMode):
    """Records while entered.

    Attributes:
        calls: operations with their arguments and results.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, dict[str, Any], Any]] = []
        self._before: dict[int, tuple[Tensor, Tensor]] = {}  # memory that was there, and its content
        self._made: dict[int, Tensor] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, func.overloadpacket
        masks = [x for x in tensors(args[1:2]) if x.dtype == torch.bool] if name is aten.index else []
        if name in ON_HOST or masks or torch.Tag.nondeterministic_seeded in func.tags:
            raise RuntimeError(f"{func} cannot be captured")
        for argument, x in zip(func._schema.arguments, args, strict=False):
            self._keep(argument, x)
        for argument in func._schema.arguments:
            self._keep(argument, kwargs.get(argument.name))
        args, kwargs = tree_map(lambda x: x, (args, kwargs))  # lists that the caller may change
        result = func(*args, **kwargs)
        here = {memory(x).data_ptr() for x in tensors((args, kwargs))}
        for x in tensors(result):
            if memory(x).data_ptr() not in here:
                self._made[memory(x).data_ptr()] = x
        self.calls.append((func, args, kwargs, result))
        return result

    def _keep(self, argument: Any, value: Any) -> None:
        if argument.alias_info is None or not argument.alias_info.is_write:
            return
        for x in tensors(value):
            of = memory(x)
            if of.data_ptr() not in self._made:
                self._before.setdefault(of.data_ptr(), (of, of.clone()))

    def undo(self) -> None:
        """Leave what was there as it was, and nothing of use in what was made."""
        for of, content in self._before.values():
            of.copy_(content)
        for x in self._made.values():
            memory(x).fill_(SPOILED)

    def replay(self) -> None:
        for func, args, kwargs, result in self.calls:
            writes = any(of.alias_info is not None and of.alias_info.is_write for of in func._schema.arguments)
            views = all(of.alias_info is not None for of in func._schema.returns)
            if func.overloadpacket in MAKING or (views and not writes):
                continue
            again = func(*args, **kwargs)
            if not writes:
                for x, y in zip(tensors(result), tensors(again), strict=True):
                    x.copy_(y)


class RecordedGraphs:
    """See `finetooth_torch.device.graphs.Graphs`.

    Attributes:
        counts: of all batches: steps that warmed up, captures, replays.
    """

    counts: ClassVar[Counter[str]] = Counter()

    def __init__(self, device: torch.device) -> None:
        del device

    def warm(self, compute: Callable[[], Any]) -> Any:
        self.counts["warm"] += 1
        return compute()

    def capture(self, compute: Callable[[], Any]) -> tuple[Any, Callable[[], None]]:
        self.counts["captures"] += 1
        with Recorder() as recorder:
            result = compute()
        recorder.undo()

        def replay() -> None:
            self.counts["replays"] += 1
            recorder.replay()

        return result, replay
