"""The parameters that train, in two precisions.

In fp32 the model's own parameters train. In bf16 and fp16 the model computes with parameters in that precision (so
every GEMM runs in it, without the casts of autocast in every layer), and the optimizer updates master copies in fp32.
Parameters that the model's authors keep in fp32 stay so, with a master like all others. As soon as the backward pass
has computed a gradient, it is divided by the loss scale and added to the master's gradient in fp32. So accumulation
over micro-batches loses no precision, and low-precision gradients never exist all at once. After a step the masters are
rounded into the model. An optimizer that rounds weights itself (`masterless`) needs no masters; the gradients are in
fp32 all the same.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from finetooth_hooks import PlanError
from finetooth_kernels.memory import placed
from torch import Tensor, nn

from finetooth_torch.compute import TORCH, Compute
from finetooth_torch.offload.transfers import Transfers
from finetooth_torch.precision import result_dtype
from finetooth_torch.updates.scaler import LossScaler

if TYPE_CHECKING:
    from finetooth_torch.network import Network

R = TypeVar("R")


def trained(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """The parameters of a model that train, by their names.

    Raises:
        PlanError: there are none.
    """
    live = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    if not live:
        raise PlanError("adapter: it leaves no parameter to train", action="choose another adapter")
    return live


class TrainedParameters:
    """The parameters that the adapter left trainable.

    Attributes:
        live: the model's own parameters.
        masters: for the optimizer: the same, or their copies in fp32 (`split`).
        sharded: masters are this rank's parts; see `finetooth_torch.updates.sharded_parameters`.
        staged: masters of other ranks' layers hold nothing; see `finetooth_torch.updates.staged_parameters`.
        keeps: this rank holds the saved state.
        exports: this rank holds the exported weights: one that keeps the state, and any if only an adapter is exported.

    Args:
        model: the adapted model.
        base: identities (`id`) of the base's parameters; they are exported in `dtype`, new ones in the adapter's
            precision.
        dtype: in which the model computes.
        scaler: gradients are divided by its scale.
        compute: sums gradients.
        kept: identities of the base's parameters that stay in fp32, see `finetooth_torchshared.kept_in_fp32`.
        words: capabilities of the optimizer. With `masterless`, it updates parameters in the model's precision, with
            gradients in fp32.

    Raises:
        PlanError: nothing trains.
    """

    sharded = staged = False
    keeps = exports = True

    def __init__(
        self,
        model: nn.Module,
        base: Collection[int],
        dtype: torch.dtype,
        scaler: LossScaler,
        compute: Compute = TORCH,
        *,
        kept: Collection[int] = (),
        words: Collection[str] = (),
    ) -> None:
        self._accumulate = compute.accumulate
        live = trained(model)
        self._scaler = scaler
        self.names = tuple(name for name, _ in live)
        self.live = [parameter for _, parameter in live]
        computed = [torch.float32 if id(parameter) in kept else dtype for parameter in self.live]
        self._given_dtypes = [
            of if id(parameter) in base else parameter.dtype for parameter, of in zip(self.live, computed, strict=True)
        ]
        rounds = result_dtype(dtype) != dtype
        self.split = rounds and "masterless" not in words
        # Copy trained parameters out of mapped files: else the first step copies them page by page, and stops all
        # threads for each.
        if not self.split:
            for parameter, of in zip(self.live, computed, strict=True):
                parameter.data = parameter.data.to(of, copy=True) if rounds else parameter.data.clone()
                if rounds:  # accumulation over micro-batches loses no precision
                    parameter.grad_dtype = torch.float32
            self.masters = self.live
            return
        self.masters = []
        for parameter, of in zip(self.live, computed, strict=True):
            master = nn.Parameter(parameter.detach().to(torch.float32, copy=True))
            parameter.data = parameter.data.to(of, copy=id(parameter) in kept)
            parameter.register_post_accumulate_grad_hook(self._collector(master))  # type: ignore[no-untyped-call]
            self.masters.append(master)

    def _collector(self, master: nn.Parameter) -> Any:
        scaler, accumulate = self._scaler, self._accumulate

        def collect(parameter: Tensor) -> None:
            gradient, parameter.grad = parameter.grad, None
            if gradient is None:
                return
            if scaler.scale != 1.0:
                gradient = gradient.to(torch.float32).div_(scaler.scale)
            master.grad = accumulate(master.grad, gradient, torch.float32)

        return collect

    def named(self) -> list[tuple[str, nn.Parameter]]:
        """Names and masters, for the optimizer."""
        return list(zip(self.names, self.masters, strict=True))

    def numel(self) -> int:
        """Trained numbers, over all ranks."""
        return sum(parameter.numel() for parameter in self.live)

    def collect(self) -> None:
        """Move gradients from the model to the masters."""

    def whole(self, tensors: Mapping[str, Tensor], *, everywhere: bool = False) -> Mapping[str, Tensor]:
        """Tensors in the shapes of masters, by name, whole, for saving.

        Args:
            everywhere: also at ranks that do not keep them; otherwise they are on the device `meta` there.
        """
        return tensors

    def whole_state(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """The state dict of an optimizer over the masters, with the parts of other ranks."""
        return optimizer.state_dict()

    def own(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """This rank's part of a result of `whole`."""
        return tensors

    def gathered(self) -> AbstractContextManager[None]:
        """Inside the `with` block, the model holds all its parameters, for code that reads them."""
        return nullcontext()

    def alone(self) -> AbstractContextManager[None]:
        """Inside the `with` block, the model computes without the other ranks."""
        return self.gathered()

    def sampling(self, sample: Callable[..., R]) -> Callable[..., R]:
        """A sampling function that runs with the weights it needs."""

        def sampled(*arguments: Any, **options: Any) -> R:
            with self.alone():
                return sample(*arguments, **options)

        return sampled

    def built(self, build: Callable[[], Network]) -> Network:
        """Build the network, which tries the model on a few tokens."""
        with self.gathered():
            return build()

    def serve(self, network: Network) -> None:
        """Set the network that computes with them."""

    def gradients(self) -> list[Tensor]:
        """Accumulated gradients, unscaled, of those parameters that have one."""
        return [master.grad for master in self.masters if master.grad is not None]

    def zero_grad(self) -> None:
        """Drop accumulated gradients."""
        for parameter in (*self.live, *self.masters):
            parameter.grad = None

    @contextmanager
    def untouched_on_failure(self, *, on_host: bool = False) -> Iterator[None]:
        """Restore the accumulated gradients, bit for bit, if the body raises.

        They are copied only if there are some before: a step with one call needs no memory for it.

        Args:
            on_host: the copies are in host memory.
        """
        before = self._earlier(on_host)
        try:
            yield
        except BaseException:
            self.zero_grad()
            for master, gradient in zip(self.masters, before, strict=True):
                master.grad = None if gradient is None else gradient()
            raise

    def _earlier(self, on_host: bool) -> list[Callable[[], Tensor] | None]:
        """Functions that return the gradients of now, by master; None where there is none."""
        if not on_host:
            return [None if master.grad is None else master.grad.clone().detach for master in self.masters]
        transfers = Transfers(self.device)
        before = [None if master.grad is None else transfers.put(master.grad) for master in self.masters]
        transfers.settle()
        return before

    def norm(self) -> float:
        """Global L2 norm of the accumulated gradients, in fp32; 0 without any."""
        return self.norm_of({at: of.grad for at, of in enumerate(self.masters) if of.grad is not None})

    def norm_of(self, gradients: Mapping[int, Tensor]) -> float:
        """The same for given gradients, by index of the master."""
        return float(nn.utils.get_total_norm(list(gradients.values()))) if gradients else 0.0

    def joined(self, gradients: dict[int, Tensor]) -> dict[int, Tensor]:
        """Gradients by index of the master, with those that other ranks have of the same rows."""
        return gradients

    @property
    def device(self) -> torch.device:
        """Where gradients are."""
        return self.masters[0].device

    def clip(self, limit: float, norm: float) -> None:
        """Scale the gradients so that their global norm is at most `limit`; as torch.nn.utils.clip_grad_norm_ does."""
        if norm > 0:
            nn.utils.clip_grads_with_norm_(self.masters, limit, placed(torch.tensor(norm), self.device))

    @torch.no_grad()
    def publish(self) -> None:
        """Round the masters into the model."""
        if self.split:
            torch._foreach_copy_(list[Tensor](self.live), list[Tensor](self.masters))

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Load masters by name, whose names and shapes were checked."""
        for name, master in self.named():
            master.copy_(tensors[name])
        self.publish()

    @contextmanager
    def as_given(self, *, take: bool = False) -> Iterator[None]:
        """Inside the `with` block, the model holds the trained parameters in their export precision.

        It takes no memory: the model already has them in its precision, and another precision is the masters'.

        Args:
            take: keep the model's parameters at the end. The model then holds copies, so that the masters do not change
                if the body fails.
        """
        if not self.split:
            yield
            return
        computed = [parameter.data for parameter in self.live]
        try:
            for parameter, master, dtype in zip(self.live, self.masters, self._given_dtypes, strict=True):
                if take or dtype != parameter.dtype:
                    parameter.data = master.detach().to(dtype, copy=take)
            yield
            if take:
                for parameter, master in zip(self.live, self.masters, strict=True):
                    master.data.copy_(parameter.data)
        finally:
            for parameter, data in zip(self.live, computed, strict=True):
                parameter.data = data
            self.publish()


def round_frozen(
    base: nn.Module, dtype: torch.dtype, kept: Collection[int] = (), place: Callable[[Tensor], Tensor] | None = None
) -> None:
    """Cast the frozen parameters of a model loaded in fp32, except those that stay in fp32.

    Args:
        kept: identities of those parameters.
        place: puts a rounded tensor elsewhere than in memory.
    """
    for parameter in base.parameters():
        rounds = parameter.is_floating_point() and parameter.dtype != dtype and id(parameter) not in kept
        if rounds and not parameter.requires_grad:
            rounded = parameter.data.to(dtype)
            parameter.data = rounded if place is None or rounded.is_meta else place(rounded)
