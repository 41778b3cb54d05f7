"""Experts that a model holds as one weight, computed in groups: the rows of an expert stand together, and a low-rank
addition multiplies by itself, as two thin products. Its sum with the weight is never formed.

transformers asks a registry how such modules compute. Ours has the formula of its `grouped_mm`, by the operation
`grouped_matmul`, and additions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from finetooth_kernels.grouped import LowRankAddition, grouped_matmul
from torch import Tensor, nn
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from finetooth_torchshared.stored_experts import is_stored, read_some, stored_in

__all__ = ["LowRankAddition", "added_to", "compute_in_groups", "computes_in_groups"]

NAME = "finetooth"
"""Name of this way to compute in transformers' registry and configs. Saved configs do not have it."""
MULTIPLY, ADDITIONS = "_grouped_matmul", "_grouped_additions"
FEW = 4
"""With so many rows for each expert, drawn at random, 98 of 100 experts have some."""
WEIGHTS = ("gate_up_proj", "up_proj", "down_proj")


def compute_in_groups(model: nn.Module, multiply: Callable[..., Tensor] | None = None) -> int:
    """Have a model's experts computed here, all that transformers lets choose.

    Args:
        multiply: the operation `grouped_matmul`; None: torch's way, where nothing else was chosen before.

    Returns:
        How many modules these are.
    """
    experts = [module for module in model.modules() if _chooses(module)]
    if experts:
        ALL_EXPERTS_FUNCTIONS.register(NAME, _forward)
    for module in experts:
        own: Any = module
        own.config._experts_implementation = NAME
        if multiply is not None:
            vars(module)[MULTIPLY] = multiply
    return len(experts)


def computes_in_groups(module: nn.Module, name: str) -> bool:
    """Whether a module's weight of this name is multiplied here."""
    own: Any = module
    return _chooses(module) and name in WEIGHTS and own.config._experts_implementation == NAME


@contextmanager
def added_to(module: nn.Module, name: str, addition: LowRankAddition) -> Iterator[None]:
    """Inside the `with` block, a low-rank addition belongs to a weight of the module.

    Args:
        name: of the weight, (experts, a, b).
        addition: (experts, a, rank), (experts, rank, b) and the scale of their product.
    """
    before = vars(module).get(ADDITIONS, {})
    vars(module)[ADDITIONS] = {**before, name: addition}
    try:
        yield
    finally:
        vars(module)[ADDITIONS] = before


def _chooses(module: nn.Module) -> bool:
    """transformers marks such modules by what its registry's functions read of them."""
    return all(hasattr(module, name) for name in ("has_gate", "is_transposed", "_apply_gate", "config"))


def _forward(self: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """The combined output of each row's experts, (N, D).

    Args:
        hidden_states: (N, D).
        top_k_index, top_k_weights: (N, K), experts of each row and their shares.
    """
    count = top_k_index.shape[-1]
    groups, order = torch.sort(top_k_index.reshape(-1), stable=True)
    numbers = torch.arange(self.num_experts, device=groups.device)
    ends = torch.searchsorted(groups, numbers, right=True, out_int32=True)
    experts = _reached(self, groups)
    up = "gate_up_proj" if self.has_gate else "up_proj"
    rows = _linear(self, up, hidden_states[order // count], groups, ends, experts)
    rows = self._apply_gate(rows) if self.has_gate else self.act_fn(rows)
    rows = _linear(self, "down_proj", rows, groups, ends, experts)
    if getattr(self, "has_post_expert_norm", False):
        rows = self.post_expert_norm(rows)
    rows = rows * top_k_weights.reshape(-1)[order].unsqueeze(-1)
    places = torch.empty_like(order)
    places[order] = torch.arange(order.shape[0], device=order.device)
    return rows[places].view(-1, count, hidden_states.shape[-1]).sum(1).to(hidden_states.dtype)


def _reached(module: Any, groups: Tensor) -> tuple[int, ...] | None:
    """The experts that rows go to, where the others need not become numbers: they are stored in fewer bits. None: all
    are read, as where so many rows leave out next to none."""
    if not is_stored(module) or len(groups) >= FEW * module.num_experts:
        return None
    reached: Tensor = groups.unique_consecutive()  # type: ignore[no-untyped-call]
    return tuple(reached.tolist())  # waits for a device, a few of whose rows these are


def _linear(
    module: Any, name: str, rows: Tensor, groups: Tensor, ends: Tensor, experts: tuple[int, ...] | None
) -> Tensor:
    """
    Args:
        experts: the only ones that have rows; None: any may.
    """
    addition = vars(module).get(ADDITIONS, {}).get(name)
    if experts is None or name not in stored_in(module):
        weight = getattr(module, name)
    else:
        some = torch.tensor(experts, device=ends.device)
        weight, ends = read_some(module, name, experts), ends[some]
        addition = addition and (addition[0][some], addition[1][some], addition[2])
    if not module.is_transposed:
        weight = weight.mT
        addition = addition and (addition[1].mT, addition[0].mT, addition[2])
    multiply = vars(module).get(MULTIPLY, grouped_matmul)
    made: Tensor = multiply(rows.to(weight.dtype), weight, ends, addition)
    return made + getattr(module, f"{name}_bias")[groups] if module.has_bias else made
