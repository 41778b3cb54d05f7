"""The engine: the eight primitives over one transformers model on one device."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from finetooth_hooks import (
    Backward,
    Datum,
    EngineError,
    EngineInfo,
    Forward,
    Generated,
    Handle,
    LossSpec,
    NotFinite,
    Sampling,
    Stepped,
    UserError,
)
from finetooth_hooks.bases import EngineBase
from finetooth_hooks.compute.held import HeldAdapter, Stack
from finetooth_hooks.engine import Counts, Snapshot, Spans, StepSettings, Usage
from finetooth_hooks.protocols import EngineRequest
from finetooth_kernels.memory import placed
from finetooth_steps.data_checks import check_data, check_fields, check_gradients
from finetooth_steps.draws import places_of
from finetooth_steps.layout import lay_out
from finetooth_steps.normalizers import count_normalizers
from finetooth_steps.outputs import is_whole
from finetooth_steps.passes import Counters, Evaluated, Pass, PendingPasses, report
from finetooth_steps.row_budget import check_rows
from finetooth_torchshared.quantised import stored_weights
from numpy.typing import NDArray

from finetooth_torch.capabilities import capabilities
from finetooth_torch.device.environment import environment
from finetooth_torch.device.exhaustion import attempted, guarded, has_room
from finetooth_torch.device.host_copy import on_host
from finetooth_torch.device.usage import usage
from finetooth_torch.generation.generator import Generator
from finetooth_torch.generation.joinable_batch import TorchRunningBatch
from finetooth_torch.network import ROLES, Network
from finetooth_torch.offload.saved_tensors import SavedTensors
from finetooth_torch.passes import Runner
from finetooth_torch.planning.memory import EARLIER, GENERATION_BATCHES
from finetooth_torch.planning.peak_flops import peak_flops
from finetooth_torch.profile.recording import record, spanned
from finetooth_torch.profile.trace import LAYOUT_SPAN, OPTIMIZER_SPAN
from finetooth_torch.randomness import global_states, seed_global, set_global
from finetooth_torch.ranks import Ranks
from finetooth_torch.roles.role_models import move_copy
from finetooth_torch.state.optimizer import Options
from finetooth_torch.state.training_state import State, read_state, restore_state, state_of
from finetooth_torch.updates.changes import Changes
from finetooth_torch.updates.parameters import TrainedParameters
from finetooth_torch.updates.scaler import LossScaler
from finetooth_torch.updates.updater import Updater


@dataclass(frozen=True)
class Parts:
    """What the backend built.

    Attributes:
        optimizer: over the masters of `parameters`; a `ShardedOptimizer` if a strategy shards it over ranks.
        group_options: of its parameter groups, as they were made.
        changes: the adapter's changes of the model between steps.
        saved: keeps tensors for the backward pass.
    """

    network: Network
    parameters: TrainedParameters
    optimizer: torch.optim.Optimizer
    scaler: LossScaler
    device: torch.device
    dtype: torch.dtype
    group_options: tuple[Options, ...]
    changes: Changes
    saved: SavedTensors


class TorchEngine(EngineBase):
    """Trains the parameters that the adapter left trainable; `finetooth_hooks.engine.Engine` defines the primitives.

    Dropout is on in `forward` of the policy, `backward` and `forward_backward`; off in `logprobs`, `generate`, roles.

    The engine reports operations of `forward`, `backward` (with the forward pass that it repeats), `forward_backward`
    and `generate`, but not of `logprobs`, which returns bare arrays.
    """

    def __init__(self, request: EngineRequest, parts: Parts) -> None:
        self._request, self._parts = request, parts
        train = request.plan.train
        assert train.micro_batch_tokens and train.precision
        spread: Any = request.place.shard_optimizer and parts.optimizer
        self._ranks = Ranks(parts.parameters, request.place.collective, spread, joint=parts.network.joint)
        self._budget = train.micro_batch_tokens
        pad = request.text.tokenizer.pad_id
        self._runner = Runner(
            parts.network, device=parts.device, dtype=parts.dtype,
            pad_id=pad if pad is not None and pad < request.base.facts.vocab_size else 0, seed=request.place.seed,
            scale=lambda: parts.scaler.scale, saved=parts.saved, ranks=self._ranks,
        )  # fmt: skip
        self._generator = Generator(
            parts.network, request.text.tokenizer, request.text.stop_ids, device=parts.device,
            tokens=GENERATION_BATCHES * self._budget,
        )  # fmt: skip
        self._generator.check_asked = self._runner.check_asked
        self._sample = parts.parameters.sampling(self._generator.generate)
        self._updater = Updater(request, parts.parameters, parts.optimizer, parts.scaler, parts.group_options)
        self._total_steps = request.plan.total_steps
        self._apart = EARLIER in request.plan.memory.host
        self._counters = Counters()
        self._loss_states: dict[str, Mapping[str, Any]] = {}
        self._pending = PendingPasses()
        network = parts.network
        self._info = EngineInfo(
            framework="torch",
            device=str(parts.device),
            precision=train.precision,
            parameters=sum(p.numel() for p in network.model.parameters()) + stored_weights(network.model),
            trained=parts.parameters.numel(),
            max_length=request.base.facts.max_positions,
            environment=environment(parts.device, request.place.hardware.label),
        )
        seed_global(parts.device, request.place.seed)

    @property
    def info(self) -> EngineInfo:
        return self._info

    @property
    def capabilities(self) -> frozenset[str]:
        return capabilities(self._request, head=self._parts.network.scalar is not None)

    @property
    def weights_version(self) -> int:
        return self._counters.step

    # --- evaluate and differentiate -----------------------------------------------------------------------------------

    @guarded("forward")
    def forward(
        self,
        data: Sequence[Datum],
        loss: LossSpec | None = None,
        *,
        role: str = "policy",
        returns: Collection[str] = ("logprobs",),
        normalizer: Counts | None = None,
        train: bool = True,
    ) -> Forward:
        self._parts.network.executed()  # count from here
        work = self._work(data, loss, role=role, normalizer=normalizer)
        train = train and role == "policy"  # its backward differentiates this
        evaluated = None
        if loss is not None:
            with self._ranks.together() if train else nullcontext():  # the backpropagated loss is, at every rank
                evaluated = self._runner.evaluate(work, train=train, returns=returns)
        outputs = [] if evaluated is None else evaluated.outputs
        missing = [name for name in returns if loss is None or name not in loss.needs or is_whole(name)]
        if missing:
            whole = any(map(is_whole, missing))
            scored = self._runner.score(self._work(data, None, role=role, whole=whole), missing, train=train)
            outputs = [{**have, **more} for have, more in zip(outputs or [{} for _ in data], scored, strict=True)]
        handle = None
        if train:
            handle = self._pending.open(work, self.weights_version)
        return report(work, outputs, evaluated, handle, flops=self._parts.network.executed())

    @guarded("backward")
    def backward(
        self,
        handle: Handle,
        grads: Sequence[NDArray[np.floating[Any]]] | None = None,
        *,
        normalizer: Counts | None = None,
    ) -> Backward:
        self._parts.network.executed()  # count from here
        work = self._pending.claimed(handle, self.weights_version)
        if grads is not None:
            if normalizer is not None:
                raise EngineError("backward: gradients that are given are not normalised again", action="pass only one")
            check_gradients(work.data, grads)
            with self._accumulating(work):
                self._count_routed(work)
                self._runner.backward_from(work, grads)
            self._counters.add_rows(work.data)
        elif work.spec is None:
            raise EngineError(
                "backward: its forward had no loss and no gradients are given",
                action="give forward a loss, or backward the gradients",
            )
        else:
            # as forward_backward would: another backward may have changed the loss's state meanwhile
            work = replace(work, state=self._loss_state(work.spec))
            self._differentiate(work if normalizer is None else replace(work, counts=normalizer), ())
        del self._pending[handle.id]
        norm = self._ranks.norm()
        return Backward(grad_norm=norm, overflow=not math.isfinite(norm), flops=self._parts.network.executed())

    @guarded("forward_backward")
    def forward_backward(self, data: Sequence[Datum], loss: LossSpec, *, normalizer: Counts | None = None) -> Forward:
        self._parts.network.executed()  # count from here
        work = self._work(data, loss, normalizer=normalizer)
        evaluated = self._differentiate(work, ("logprobs", "entropy"))
        return report(work, evaluated.outputs, evaluated, None, flops=self._parts.network.executed())

    @guarded("logprobs")
    def logprobs(self, data: Sequence[Datum], *, role: str = "policy") -> list[NDArray[np.float32]]:
        return [outputs["logprobs"] for outputs in self._runner.score(self._work(data, None, role=role), ("logprobs",))]

    def module(self) -> torch.nn.Module:
        return self._parts.network.model

    def weights(self) -> dict[str, torch.Tensor]:
        if "weights" not in self.capabilities:
            raise self._cannot("give its weights", "weights")
        whole = self._parts.parameters.whole(dict(self._parts.parameters.named()), everywhere=True)
        return {name: master.detach() for name, master in whole.items()}

    @guarded("set_weights")
    def set_weights(self, weights: Mapping[str, torch.Tensor]) -> None:
        if weights.keys() != set(self._parts.parameters.names):
            raise EngineError("set_weights: other weights than those that train", action="give what weights() gives")
        self._updater.changes += 1
        self._pending.clear()
        self._parts.parameters.restore(self._parts.parameters.own(weights))

    def release(self, handle: Handle) -> None:
        self._pending.pop(handle.id, None)

    def zero_grad(self) -> None:
        if self._updater.in_backward and self._counters.accumulated:
            raise EngineError("zero_grad: the optimizer has made the update inside backward", action="call step")
        self._drop_gradients()

    def _drop_gradients(self) -> None:
        self._parts.parameters.zero_grad()
        self._counters.drop()

    # --- update -------------------------------------------------------------------------------------------------------

    @guarded("step")
    @spanned(OPTIMIZER_SPAN)
    def step(self, *, metrics: Mapping[str, float] | None = None, settings: StepSettings | None = None) -> Stepped:
        settings = settings or StepSettings()
        self._updater.check(settings)
        if not self._ranks.any(bool(self._counters.accumulated or self._parts.parameters.gradients())):
            raise EngineError(
                f"step {self._counters.step + 1}: no gradients were accumulated, and nothing was changed",
                action="call forward_backward or backward first",
            )
        rate = self._rate() if settings.learning_rate is None else settings.learning_rate
        self._ranks.share_gradients()
        seen = {"loss": self._ranks.total(self._counters.loss), **(metrics or {})}  # before weights move
        rows = partial(self._ranks.rows, self._counters.rows)
        try:
            norm, skipped = self._updater.update(settings, rate, self._counters.step + 1, rows)
        except NotFinite:
            self._drop_gradients()
            raise
        self._counters.step += 1
        self._pending.clear()
        self._drop_gradients()
        with self._updater.whole.update(self._parts.optimizer, self._parts.parameters.masters):
            self._parts.changes.after(self._counters.step, self._parts.optimizer)
        self._request.updates.schedule.observe(seen)
        return Stepped(step=self._counters.step, learning_rate=rate, grad_norm=norm, skipped=skipped)

    def _rate(self) -> float:
        """The learning rate of the next step, as the recipe has it."""
        step = self._counters.step
        return self._updater.rate(step, self._total_steps) * self._parts.changes.factor(step)

    def averaged(self) -> AbstractContextManager[None]:
        return self._generator.kept.apart(self._updater.averaged())

    def set_total_steps(self, total: int | None) -> None:
        self._total_steps = total

    @guarded("move_role")
    def move_role(self, role: str, mix: float) -> None:
        move_copy(self._parts.network, role, mix)

    # --- sample -------------------------------------------------------------------------------------------------------

    @guarded("generate")
    def generate(self, prompts: Sequence[Sequence[int]], sampling: Sampling) -> Generated:
        self._parts.network.executed()  # count from here
        self._runner.begin()
        completions = self._sample(prompts, sampling, weights_version=self.weights_version)
        return Generated(completions, self._parts.network.executed())

    def running_batch(self) -> TorchRunningBatch:
        return TorchRunningBatch(
            self._generator, self._request.text.tokenizer, tokens=GENERATION_BATCHES * self._budget,
            changes=lambda: self._updater.changes, weights_version=self.weights_version,
            attempt=partial(attempted, self, "generate", ()), gathered=self._parts.parameters.gathered,
        )  # fmt: skip

    @guarded("hold")
    def hold(self, path: Path | Stack | None) -> HeldAdapter | None:
        return self._generator.hold(path) if "adapters" in self.capabilities else super().hold(path)

    # --- keep ---------------------------------------------------------------------------------------------------------

    @guarded("save")
    def save(self, path: Path) -> None:
        self._updater.whole.check_state()
        state_of(self._request, self._parts, self._ranks, self._counters, self._loss_states, copy=False).save(path)

    @guarded("load")
    def load(self, path: Path) -> None:
        self._take(read_state(Path(path)), str(path))

    @guarded("snapshot")
    def snapshot(self) -> State:
        """Copy the state to the device, or to host memory if it does not fit there."""
        self._updater.whole.check_state()
        copies: list[State] = []
        state = partial(state_of, self._request, self._parts, self._ranks, self._counters, self._loss_states)
        if has_room(lambda: copies.append(state()), self._parts.device):
            return copies[0]
        return state(copy=False).to_host()

    @guarded("rollback")
    def rollback(self, snapshot: Snapshot) -> None:
        if not isinstance(snapshot, State):
            raise EngineError("rollback: this is not a snapshot of a torch engine", action="give one that it made")
        self._take(snapshot, "the snapshot")

    def _take(self, state: State, where: str) -> None:
        self._updater.changes += 1
        self._loss_states = restore_state(state, self._request, self._parts, self._ranks, self._counters, where)
        self._updater.whole.restored()
        self._pending.clear()

    @guarded("export")
    def export(self, path: Path) -> None:
        self._updater.whole.check_weights()
        (path := Path(path)).mkdir(parents=True, exist_ok=True)
        network = self._parts.network
        with self.averaged(), self._parts.parameters.as_given():
            self._write_weights(path)
        self._request.text.tokenizer.save(path)
        if network.reads_media and self._request.text.processor is not None:
            with suppress(UserError):  # no image or sound occurred, and none can
                self._request.text.processor().save(path)

    def _write_weights(self, path: Path) -> None:
        """The adapter writes the artifact, at ranks that have the weights; via host memory if the device has no
        room."""

        def write() -> None:
            network = self._parts.network
            model = network.model if network.scalar is None else network.scalar.classifier(network.model)
            self._request.trains.adapter.export(model, path, self._request.base.model)
            if network.scalar is not None:
                network.scalar.export(path)

        if not self._parts.parameters.exports or has_room(write, self._parts.device):
            return
        with on_host(self._parts.network.model):
            write()

    @guarded("restore")
    def restore(self, path: Path) -> None:
        self._updater.changes += 1
        self._pending.clear()
        self.zero_grad()
        network = self._parts.network
        path, scalar = Path(path), network.scalar
        taking = nullcontext(network.model) if scalar is None else scalar.taking(network.model, path)
        with self._parts.parameters.as_given(take=True), taking as model:
            self._request.trains.adapter.restore(model, path)

    def interrupt_when(self, asked: Callable[[], bool]) -> None:
        self._runner.asked = asked

    # --- measure ------------------------------------------------------------------------------------------------------

    def usage(self) -> Usage:
        return usage(self._parts.device)

    def peak_flops(self) -> float:
        place = self._request.place  # ranks that divide a row count the operations of the whole row
        return peak_flops(place.hardware, self._info.precision) * (place.sharding.together if place.sharding else 1)

    def profile(self, folder: Path) -> AbstractContextManager[Spans]:
        return record(Path(folder), self._parts.device)

    # --- parts --------------------------------------------------------------------------------------------------------

    @spanned(LAYOUT_SPAN)
    def _work(
        self,
        data: Sequence[Datum],
        loss: LossSpec | None,
        *, role: str = "policy", normalizer: Counts | None = None, whole: bool = False,
    ) -> Pass:  # fmt: skip
        if role not in ROLES and role not in self._parts.network.holders:
            self._parts.network.role(role)  # refuses by name
        data = tuple(data)
        if not data and self._request.place.collective is not None:  # a rank without rows adds nothing
            return Pass((), (), (), self._counters.step, role, loss, normalizer or {}, self._loss_state(loss))
        facts, network = self._request.base.facts, self._parts.network
        check_data(
            data, vocab_size=facts.vocab_size, max_positions=facts.max_positions, media=network.reads_media,
            obstacle=network.rows.obstacle, trees="" if network.body.packed else network.rows.trees,
        )  # fmt: skip
        check_rows(data, self._budget)
        if loss is not None:
            check_fields(data)
            self._ranks.check_loss(loss)
        return Pass(
            data=data,
            batches=lay_out(
                data,
                budget=self._budget,
                together="sequence" if loss is None else loss.together,
                whole=whole or network.reads_whole_rows,
                packed=network.body.packed,
                shares=network.body.shares,
                least_saved=network.body.least_saved,
                filling=network.rows.filling,
            ),
            places=places_of(data, len(self._counters.rows)),
            step=self._counters.step,
            role=role,
            spec=loss,
            counts=count_normalizers(data) if normalizer is None else normalizer,
            state=self._loss_state(loss),
        )

    def _loss_state(self, loss: LossSpec | None) -> Mapping[str, Any]:
        return {} if loss is None else self._loss_states.get(loss.name, {})

    @contextmanager
    def _accumulating(self, work: Pass) -> Iterator[None]:
        """Add a call's gradients, all of them, or none if the call fails.

        After a failure, the earlier calls' gradients, losses and states of losses are unchanged, and so are torch's
        global generators, from which a user's loss may draw.
        """
        random = global_states(self._parts.device)
        around = self._updater.around_backward(work.batches, self._counters.accumulated, self._rate)
        try:
            with self._parts.parameters.untouched_on_failure(on_host=self._apart), self._ranks.together(), around:
                yield
                self._parts.parameters.collect()
        except BaseException:
            set_global(random, self._parts.device)
            raise
        self._counters.accumulated += 1

    def _count_routed(self, work: Pass) -> None:
        """If routers have losses: count their choices over the whole step, before the backward pass.

        Raises:
            EngineError: the step has several calls.
        """
        if (routers := self._parts.network.routers) is None:
            return
        if self._counters.accumulated:
            raise EngineError(
                "backend.router_aux_loss_coef and router_z_loss_coef are of whole steps, and this step comes in "
                "several calls",
                action="give all data of a step in one call, or leave both out",
            )
        routers.step = None
        if self._request.place.collective is not None or len(work.computed) > 1:
            with self._ranks.together():
                own = self._runner.routed(work)
            routers.step = placed(torch.tensor(self._ranks.sums(own)), self._parts.device)

    def _differentiate(self, work: Pass, returns: Collection[str]) -> Evaluated:
        """Evaluate the loss of `work` and accumulate its gradients."""
        assert work.spec is not None
        with self._accumulating(work):
            self._count_routed(work)
            at_once = self._updater.in_backward  # an update cannot be undone
            evaluated = self._runner.evaluate(work, train=True, backward=True, returns=returns, at_once=at_once)
        self._counters.add_rows(work.data)
        assert evaluated.totals is not None
        if evaluated.state:
            self._loss_states[work.spec.name] = evaluated.state
        self._counters.loss += evaluated.totals.loss
        return evaluated
