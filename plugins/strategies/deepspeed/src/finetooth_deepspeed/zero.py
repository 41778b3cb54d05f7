"""An optimizer whose state DeepSpeed spreads over the ranks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from finetooth_hooks import EngineError, UserError
from finetooth_torchshared.collective import TorchCollective
from torch import Tensor, nn

from finetooth_deepspeed.options import DeepspeedOptions
from finetooth_deepspeed.quiet import without_builds


class ZeroOptimizer(torch.optim.Optimizer):
    """Implements `finetooth_hooks.protocols.ShardedOptimizer` by DeepSpeed's ZeRO.

    DeepSpeed lays the parameters of each group end to end in one row, cuts it into as many parts as there are ranks,
    and lets the optimizer that it was given update this rank's part alone. What this class adds: a step's gradients
    are brought together once, at its end, since ranks make unequal numbers of backward passes; and states of the parts
    are put together to what one process would have, and taken apart again.

    Args:
        parameters: names and what trains.
        optimizer: over them; from now on it holds parts.
        collective: the line to the other ranks.
    """

    def __init__(
        self,
        parameters: Sequence[tuple[str, nn.Parameter]],
        optimizer: torch.optim.Optimizer,
        collective: TorchCollective,
        options: DeepspeedOptions,
    ) -> None:
        super().__init__([dict(group) for group in optimizer.param_groups], dict(optimizer.defaults))
        self._base, self._collective = optimizer, collective
        self._names = {id(parameter): name for name, parameter in parameters}
        self._engine = _started([parameter for _, parameter in parameters], optimizer, collective, options)
        self._zero = self._engine.optimizer
        self._idle = False
        for hook in self._zero._grad_acc_hooks:  # they would bring gradients together at every backward pass
            hook.remove()

    def close(self) -> None:
        """Undo what DeepSpeed keeps at the parameters: left there, some processes do not come to their end."""
        self._engine.destroy()
        for group in self.param_groups:
            for parameter in group["params"]:
                vars(parameter).clear()
        self._engine = self._zero = None

    # --- a step -------------------------------------------------------------------------------------------------------

    def share(self) -> None:
        """Sums the gradients over all ranks. Where nobody has any, as in an island without rows, the step does nothing.

        Raises:
            EngineError: a parameter has no gradient at any rank, which DeepSpeed would take for a gradient of zero.
        """
        masters = [parameter for group in self.param_groups for parameter in group["params"]]
        present = self._collective.gather([master.grad is not None for master in masters])
        self._idle = not any(map(any, present))
        if self._idle:
            return
        for place, master in enumerate(masters):
            if not any(of_rank[place] for of_rank in present):
                raise EngineError(
                    f"{self._names[id(master)]} has no gradient in this step, and DeepSpeed updates every parameter",
                    action="train fewer parameters (adapter), or set scale.strategy: ddp",
                )
            if master.grad is None:
                master.grad = torch.zeros_like(master)
            else:
                master.grad.mul_(self._collective.world)  # DeepSpeed takes the mean, and ours is a sum
        with self._engine.coalesce_grad_reduction():
            pass  # what lies in .grad is brought together when this ends
        self._zero.clip_grad = 0.0

    def norm(self) -> float:
        """See `finetooth_hooks.protocols.ShardedOptimizer`."""
        norm = 0.0 if self._idle else float(self._zero.scaled_global_norm())
        if norm >= 0 and math.isfinite(norm):
            return norm
        self._engine.step()  # with such a norm, it drops the gradients
        return math.inf

    def clip(self, limit: float, norm: float) -> None:
        """DeepSpeed does, in its step."""
        del norm
        self._zero.clip_grad = limit

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update this rank's part, and get those of the others."""
        del closure
        if self._idle:
            return
        for own, group in zip(self._base.param_groups, self.param_groups, strict=True):
            own.update({name: value for name, value in group.items() if name != "params"})
        self._zero.refresh_fp32_params()  # parameters may have been set since
        self._engine.step()
        for own, group in zip(self._base.param_groups, self.param_groups, strict=True):
            group.update({name: value for name, value in own.items() if name != "params"})

    # --- its state ----------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """As one process has it; every rank gets all of it."""
        packed = super().state_dict()
        whole: dict[int, dict[str, Any]] = {}
        for (part, masters), group in zip(self._groups(), packed["param_groups"], strict=True):
            for key, value in self._base.state.get(part, {}).items():
                values = self._gathered(value, masters) if _of_weights(value, part) else [value] * len(masters)
                for index, of_master in zip(group["params"], values, strict=True):
                    whole.setdefault(index, {})[key] = of_master
        return {**packed, "state": whole}

    @torch.no_grad()
    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Keep this rank's part of a state as one process has it.

        Raises:
            UserError: parameters of a group were updated unequally often.
        """
        super().load_state_dict({"state": {}, "param_groups": state_dict["param_groups"]})
        for (part, masters), group in zip(self._groups(), state_dict["param_groups"], strict=True):
            states = [state_dict["state"].get(index, {}) for index in group["params"]]
            self._base.state.pop(part, None)
            for key, value in states[0].items():
                values = [state.get(key) for state in states]
                if isinstance(value, Tensor) and value.shape == masters[0].shape and value.dim():
                    self._base.state[part][key] = self._own(values, part)
                    continue
                if any(other is None or float(other) != float(value) for other in values):
                    raise UserError(
                        f"the saved optimizer has a different {key!r} for some parameters, which DeepSpeed cannot "
                        "continue from",
                        action="resume with scale.strategy: ddp",
                    )
                self._base.state[part][key] = value.clone() if isinstance(value, Tensor) else value

    def _groups(self) -> list[tuple[Tensor, list[nn.Parameter]]]:
        """Of each group: this rank's part of the row, and the parameters in the row, in their order."""
        return [
            (own["params"][0], masters)
            for own, masters in zip(self._base.param_groups, self._zero.bit16_groups, strict=True)
        ]

    def _gathered(self, part: Tensor, masters: Sequence[Tensor]) -> list[Tensor]:
        """What belongs to each parameter of a row of which every rank gives its part."""
        sent = part.detach().to(masters[0].device)
        row = torch.cat(self._collective.all_gather(sent))[: sum(master.numel() for master in masters)]
        split = torch.split(row, [master.numel() for master in masters])
        return [values.view(master.shape) for values, master in zip(split, masters, strict=True)]

    def _own(self, values: Sequence[Any], part: Tensor) -> Tensor:
        """This rank's part of the row that the values of all parameters make."""
        row = torch.cat([value.reshape(-1) for value in values])
        row = torch.cat([row, row.new_zeros(part.numel() * self._collective.world - row.numel())])
        first = part.numel() * self._collective.rank
        return row[first : first + part.numel()].to(part.device, copy=True)


def _of_weights(value: Any, part: Tensor) -> bool:
    return isinstance(value, Tensor) and value.dim() > 0 and value.shape == part.shape


def _started(
    parameters: Sequence[nn.Parameter], optimizer: torch.optim.Optimizer, collective: TorchCollective,
    options: DeepspeedOptions,
) -> Any:  # fmt: skip
    """DeepSpeed's engine over the parameters alone: passes through the model are none of its business."""
    numbers = int(options.bucket_mb * 1e6 / 4)
    settings = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "zero_optimization": {
            "stage": options.stage,
            "overlap_comm": False,
            "reduce_bucket_size": numbers,
            "allgather_bucket_size": numbers,
            "round_robin_gradients": False,
            **({"offload_optimizer": {"device": "cpu"}} if options.offload else {}),
        },
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "communication_data_type": "fp32",
    }
    engine, *_ = without_builds().initialize(
        model=_Holder(parameters), optimizer=optimizer, config=settings, dist_init_required=False,
        mpu=_Groups(collective),
    )  # fmt: skip
    return engine


class _Holder(nn.Module):
    """A module that has parameters and computes nothing."""

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        super().__init__()
        self.held = nn.ParameterList(parameters)


class _Groups:
    """What DeepSpeed asks about groups of ranks, in the words of Megatron's module of that name: the model is whole at
    each rank, and these train rows of their own.

    Args:
        collective: over them.
    """

    def __init__(self, collective: TorchCollective) -> None:
        self.get_data_parallel_rank = lambda: collective.rank
        self.get_data_parallel_world_size = lambda: collective.world
        self.get_data_parallel_group = lambda: collective.group
        self.get_data_parallel_group_ranks = lambda: dist.get_process_group_ranks(collective.group)
        self.get_model_parallel_group = lambda: None
        self.get_model_parallel_rank = lambda: 0
        self.get_model_parallel_world_size = lambda: 1
