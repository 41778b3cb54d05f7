"""Additional adapters that an engine holds, and the adapter of each row of a batch.

One product with the base serves all rows; each adapter computes its own rows (see `finetooth_kernels.runs`). The stream
decoder does this in its packed products; in the model's own code, replaced linear modules do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from finetooth_hooks import UserError
from finetooth_hooks.compute.held import HeldAdapter, Stack
from finetooth_hooks.protocols import Adapter, Addition, LowRank
from finetooth_kernels.decoder import GroupParts, PlainGroup
from finetooth_torchshared.plain_modules import is_plain
from torch import Tensor, nn

from finetooth_torch.decoder.bodies import StreamBody, TransformersBody
from finetooth_torch.decoder.trial_layers import exchanged
from finetooth_torch.generation.packed_layers import Pair, packed_pair
from finetooth_torch.network import Network


@dataclass(frozen=True, eq=False)
class TorchHeldAdapter(HeldAdapter):
    """An adapter, made by `hold`.

    Attributes:
        network: for which it was read.
        pairs: its matrices for each group of the stream decoder, in the decoder's order.
        additions: for the model's own code, by path in its body.
    """

    network: Network
    pairs: Sequence[Pair | None] = ()
    additions: Mapping[str, Addition] | None = None

    @property
    def size(self) -> int:
        packed = (part.size for pair in self.pairs if pair is not None for part in pair)
        plain = (matrix.nbytes for addition in (self.additions or {}).values() for matrix in (addition.a, addition.b))
        return sum((*packed, *plain))


Given = TorchHeldAdapter | None
"""None: the engine's own weights."""


class RowAdapters:
    """The adapter of each row of a product: set before layers are called, read by the modules that add adapters.

    Attributes:
        runs: first row, end row and adapter; None while all rows have the engine's own weights. A single run is for any
            number of rows.
    """

    def __init__(self) -> None:
        self.runs: tuple[tuple[int, int, Given], ...] | None = None
        self._said: Sequence[Given] | None = None

    def say(self, adapters: Sequence[Given]) -> None:
        """Set the adapter of each row; the same list again costs nothing."""
        if adapters is self._said:
            return
        self._said, runs = adapters, list[tuple[int, int, Given]]()
        for row, adapter in enumerate(adapters):
            if runs and runs[-1][2] is adapter:
                runs[-1] = (runs[-1][0], row + 1, adapter)
            else:
                runs.append((row, row + 1, adapter))
        self.runs = None if all(run[2] is None for run in runs) else tuple(runs)

    @property
    def mixed(self) -> bool:
        """Whether rows have different adapters."""
        return self.runs is not None and len(self.runs) > 1


def hold(network: Network, adapter: Adapter, path: Path | Stack | None) -> TorchHeldAdapter | None:
    """See `Engine.hold`; the network is in evaluation mode.

    Raises:
        UserError: as there.
    """
    stack: Stack = () if path is None else [(path, 1.0)] if isinstance(path, Path) else path
    fitting: dict[str, LowRank] = {}
    for folder, weight in stack:
        own = _fitting(network, adapter, folder)
        if own is None:
            return None
        for name, part in own.items():
            weighted = replace(part, scale=part.scale * weight)
            fitting[name] = _sum(fitting[name], weighted) if name in fitting else weighted
    if isinstance(network.body, StreamBody):
        pairs = _pairs(network, network.body, fitting)
        return None if pairs is None else TorchHeldAdapter(network, pairs)
    prefix = f"{network.facts.body}."
    reached = _Trial(network, adapter).reached()
    if _trains_elsewhere(network, [network.base.get_submodule(f"{prefix}{name}") for name in reached]):
        return None
    if not reached or not all(name.startswith(prefix) and name.removeprefix(prefix) in reached for name in fitting):
        return None
    additions = {name.removeprefix(prefix): Addition(of.a, of.b, of.scale) for name, of in fitting.items()}
    return TorchHeldAdapter(network, additions=additions)


def _fitting(network: Network, adapter: Adapter, folder: Path) -> dict[str, LowRank] | None:
    """The matrices of an artifact, on the devices of their modules; None if it is more than low-rank matrices.

    Raises:
        UserError: it is of another model.
    """
    additions = adapter.additions(folder)
    if additions is None:
        return None
    fitting: dict[str, LowRank] = {}
    for name, addition in additions.items():
        known = _known(network, adapter, name, folder)
        if known is None:
            return None
        like = known.base.weight
        a, b = (x.to(like.device, like.dtype) for x in (addition.a, addition.b))
        fitting[name] = LowRank(known.base, a, b, addition.scale)
    _check_shapes(fitting)
    return fitting


def _sum(first: LowRank, second: LowRank) -> LowRank:
    """Two adapters as one with the sum of their ranks; `b` includes the scales, in fp32."""
    assert first.a is not None and first.b is not None and second.a is not None and second.b is not None
    scaled = [(b.float() * scale).to(b.dtype) for b, scale in ((first.b, first.scale), (second.b, second.scale))]
    return LowRank(first.base, torch.cat([first.a, second.a]), torch.cat(scaled, dim=1), 1.0)


def _known(network: Network, adapter: Adapter, name: str, path: Path) -> LowRank | None:
    """The layer to add to; None for a module that is not a plain linear one.

    Raises:
        UserError: the model has no such module.
    """
    try:
        module = network.base.get_submodule(name)
    except AttributeError as error:
        raise UserError(
            f"{path}: it adds to {name}, which the model does not have", action="use the model of the run it comes from"
        ) from error
    return _plain_part(module, adapter)


def _plain_part(module: nn.Module, adapter: Adapter) -> LowRank | None:
    """The linear module inside, wrapped by an adapter or not, if its weight is plain numbers."""
    if is_plain(module):
        return LowRank(module)
    part = adapter.low_rank(module)
    return part if part is not None and is_plain(part.base) else None


def _pairs(network: Network, body: StreamBody, fitting: Mapping[str, LowRank]) -> list[Pair | None] | None:
    """The adapter's matrices for the decoder's groups; None if one cannot be split, or belongs to no group."""
    by_module = {network.base.get_submodule(name): part for name, part in fitting.items()}
    met: set[nn.Module] = set()
    seen: list[nn.Module] = []
    parts: list[GroupParts | None] = []

    def low_rank(module: nn.Module) -> LowRank | None:
        seen.append(module)
        part = by_module.get(module)
        if part is not None:
            met.add(module)
        return part

    def collect(group: PlainGroup) -> PlainGroup:
        parts.append(group.parts(low_rank))
        return group

    for layer in body.decoder.layers:
        layer.prepared(collect)
    known = [of for of in parts if of is not None]
    if len(known) < len(parts) or len(met) < len(by_module) or _trains_elsewhere(network, seen):
        return None
    pack = network.compute.packed_linear
    return [None if of.a is None or of.b is None else packed_pair(of.a, of.b, pack) for of in known]


def _trains_elsewhere(network: Network, modules: Sequence[nn.Module]) -> bool:
    """Whether the engine's own adapter reaches more than these modules, as embedding, head or experts: rows with other
    adapters would get that too."""
    inside = {id(parameter) for module in modules for parameter in module.parameters()}
    return any(parameter.requires_grad and id(parameter) not in inside for parameter in network.base.parameters())


def _check_shapes(fitting: Mapping[str, LowRank]) -> None:
    """
    Raises:
        UserError: shapes of another model.
    """
    for name, part in fitting.items():
        inputs, outputs = part.base.in_features, part.base.out_features
        assert part.a is not None and part.b is not None
        if part.a.shape[1] != inputs or part.b.shape[0] != outputs or part.a.shape[0] != part.b.shape[1]:
            raise UserError(
                f"the adapter's matrices for {name} are {tuple(part.a.shape)} and {tuple(part.b.shape)}, and it is a "
                f"layer of {inputs} inputs and {outputs} outputs",
                action="use the model of the run it comes from",
            )


# --- the model's own code ---------------------------------------------------------------------------------------------


class _RowsLinear(nn.Module):
    """A linear module whose rows have different adapters: computes the same as peft's layers, with one product of the
    base for all rows.

    Args:
        module: of the model, for rows with the engine's own adapter.
    """

    def __init__(self, module: nn.Module, base: nn.Module, path: str, rows: RowAdapters) -> None:
        super().__init__()
        self.__dict__["_module"] = module
        self._base, self._path, self._rows = base, path, rows

    def forward(self, x_std: Tensor) -> Tensor:
        runs = self._rows.runs
        if runs is None:
            own: Tensor = self.__dict__["_module"](x_std)
            return own
        y_sto: Tensor = self._base(x_std)
        for start, stop, adapter in runs:
            rows = slice(None) if len(runs) == 1 else slice(start, stop)
            if adapter is None:
                y_sto[rows] = self.__dict__["_module"](x_std[rows])
                continue
            addition = (adapter.additions or {}).get(self._path)
            if addition is not None:
                added = nn.functional.linear(nn.functional.linear(x_std[rows], addition.a), addition.b)
                y_sto[rows] = y_sto[rows] + added * addition.scale
        return y_sto


def adapted_body(network: Network, adapter: Adapter, rows: RowAdapters) -> TransformersBody:
    """The model's own code with linear modules that ask `rows`.

    Raises:
        TypeError: somebody put a `forward` on a module itself.
    """

    def make(module: nn.Module, base: nn.Module, path: str) -> nn.Module:
        return _RowsLinear(module, base, path, rows)

    return TransformersBody(_exchanged(network, adapter, make))


def _exchanged(network: Network, adapter: Adapter, make: Callable[[nn.Module, nn.Module, str], nn.Module]) -> Any:
    """The body with its plain linear modules replaced by `make`, wrapped by an adapter or not."""
    body, replaced = network.base.get_submodule(network.facts.body), dict[str, nn.Module]()
    for path, module in body.named_modules():
        if any(path.startswith(f"{above}.") for above in replaced):
            continue
        known = _plain_part(module, adapter)
        if known is not None:
            replaced[path] = make(module, known.base, path)
    return exchanged(body, replaced)


class _Trial:
    """Linear modules whose rows are those of a rectangle; experts have another order."""

    ROWS, TOKENS = 2, 3

    def __init__(self, network: Network, adapter: Adapter) -> None:
        self._network, self._adapter = network, adapter
        self._found: set[str] = set()

    def reached(self) -> set[str]:
        """Their paths in the body; none if the model does not work with replaced modules."""
        device = next(self._network.base.parameters()).device
        try:
            body = TransformersBody(_exchanged(self._network, self._adapter, self._watched))
            with torch.no_grad():
                body.hidden(torch.zeros((self.ROWS, self.TOKENS), dtype=torch.int64, device=device))
        except Exception:  # of the model's own code
            return set()
        return self._found

    def _watched(self, module: nn.Module, base: nn.Module, path: str) -> nn.Module:
        trial = self

        class Watched(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                if x.dim() == 3 and x.shape[:2] == (trial.ROWS, trial.TOKENS):
                    trial._found.add(path)
                result: Tensor = module(x)
                return result

        return Watched()
