"""One recipe, from plan to outcome; the command line and `finetooth.run` go through the same `Session`."""

from __future__ import annotations

import atexit
import hashlib
import json
import platform
import secrets
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, chdir, nullcontext
from dataclasses import replace
from functools import cached_property
from itertools import count
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any

from finetooth_hooks.errors import UserError
from finetooth_hooks.plan import Plan
from finetooth_hooks.reports import DataReport, Evaluation, Outcome
from finetooth_saving import run_folder
from finetooth_saving.artifact import write_json, write_text
from finetooth_saving.run_folder import PLAN, RECIPE, RESULT, RUN, check_admitted, check_unused, plan_of, run_id
from finetooth_saving.runs import closed_network
from finetooth_toolbox.cli.working import working
from finetooth_toolbox.files.own_python import record_own

from finetooth_core.plugins.collector import paused_collector
from finetooth_core.running.beginning import make_folder, withdraw

if TYPE_CHECKING:
    from finetooth_hooks.context import Opened
    from finetooth_hooks.engine import Engine

    from finetooth_core.checkpoints.resuming import Resuming, ThisRun
    from finetooth_core.planning.context import OpenModel, RunContext
    from finetooth_core.planning.joined import JoinedRank
    from finetooth_core.planning.plan import Job
    from finetooth_core.plugins.manager import Plugins
    from finetooth_core.plugins.trackers import PickedTracker
    from finetooth_core.running.loop import Loop
    from finetooth_core.running.record import Record
    from finetooth_core.settings.recipe import Recipe


class Session:
    """One recipe, from plan to outcome. Each part is made at its first use.

    Args:
        recipe: checked.
        plugins: loaded.
        name: of the run folder if the recipe has no `output`.
        say: prints one line for the user; default: silent.
        data: False if the caller drives the engine with its own data; then nothing is read, and `run` is not possible.
    """

    def __init__(
        self,
        recipe: Recipe,
        plugins: Plugins,
        *,
        name: str = "run",
        say: Callable[[str], None] | None = None,
        data: bool = True,
    ) -> None:
        self.data = data
        self.recipe = recipe
        self.plugins = plugins
        self.say = say or (lambda line: None)
        self.folder = Path(recipe.output) if recipe.output else _unused(name)
        self.resuming: Resuming | None = None
        self.memory = 0  # assumed bytes of the device; 0: the real ones
        self.added_trackers: tuple[PickedTracker, ...] = ()  # called after the recipe's
        self.place: Path | None = None  # the folder that relative paths are of; None: the current one
        self.record: Record | None = None
        self.run_id = ""
        self.joined: JoinedRank | None = None  # this process as one of several ranks
        self._context: RunContext | None = None
        self._job: Job | None = None
        self._engine: Engine | None = None

    @property
    def context(self) -> RunContext:
        """The context of the run's parts."""
        from finetooth_core.planning.context import RunContext

        if self._context is None:
            opens = opener(self.plugins)
            self._context = RunContext(
                self.recipe, self.plugins.catalog, self.folder, self.plugins, open_model=opens, memory=self.memory
            )
            self._context.joined = self.joined
        return self._context

    @property
    def planned_context(self) -> RunContext:
        """The context with the plan in it."""
        return self.job.context

    def decide(self) -> Job:
        """Plan the run, unless that is done: options, data and plan; no weights yet.

        Raises:
            FinetoothError: bad options, bad data, or an impossible combination.
        """
        from finetooth_core.planning import cascade, ranks

        if self._job is None:
            # a user's program at every rank, which calls the engine itself
            if self.joined is None and ranks.wanted(self.recipe) > 1 and ranks.started_by(self.context):
                self.start((), resumes=self.folder.is_dir())
                assert self.joined is not None
                place = ExitStack()
                place.enter_context(ranks.among(self.joined, self.folder))
                atexit.register(place.close)
            for plugin in self.plugins.events:
                if plugin.named_by_user:  # what is wrong with its options is found before anything else
                    plugin.check_options()
            with in_folder(self.place), working("deciding the plan"):
                if cascade.is_open(self.recipe):
                    self._job = cascade.choose(self.context, self._decided)
                    self._context, self.recipe = self._job.context, self._job.context.recipe
                else:
                    self._job = self._decided(self.context)
        return self._job

    def _decided(self, context: RunContext) -> Job:
        from finetooth_core.planning.plan import decide

        return decide(context, self.plugins.versions, data=self.data)

    @property
    def job(self) -> Job:
        """The decided run."""
        return self.decide()

    @property
    def decided(self) -> bool:
        """Whether it is."""
        return self._job is not None

    @property
    def plan(self) -> Plan:
        """Every decision with its reason."""
        return self.job.plan

    @property
    def losses(self) -> list[float]:
        """Training losses so far, by step."""
        return self.record.losses if self.record is not None else []

    @property
    def evaluations(self) -> list[Evaluation]:
        """Evaluations so far."""
        return self.record.evaluations if self.record is not None else []

    @property
    def reports(self) -> tuple[DataReport, ...]:
        """Reports on the rows, by split."""
        return self.job.reports

    @property
    def every_report(self) -> tuple[DataReport, ...]:
        """Reports of all readers of the rows."""
        return self.job.every_report

    def build(self) -> Engine:
        """Build the engine, unless that is done: load the weights.

        Raises:
            FinetoothError: the run cannot be decided, or its engine not be built.
        """
        from finetooth_core.planning import ranks
        from finetooth_core.plugins.builders import derived

        if self._engine is None:
            job = self.decide()
            ranks.check_started(self.recipe, self.joined)
            if self.data:  # while its files are read anyway; what has no digest yet is hashed when it is asked for
                Thread(target=lambda: job.request.base.model.digest, daemon=True).start()
            with paused_collector(), in_folder(self.place), working("loading the model"):
                built = job.backend.engine(job.request)
            backend = job.context.catalog.get("backend", job.plan.picks["backend"])
            engine: Engine = derived(built, "engine", backend)
            if self.joined is not None:
                assert self.joined.collective is not None
                engine = self.joined.strategy.spread(engine, self.joined.collective)
            engine.set_total_steps(job.prepared.total_steps or self.recipe.train.max_steps)
            self._engine = engine
        return self._engine

    @property
    def engine(self) -> Engine:
        """The engine, weights loaded."""
        return self.build()

    def start(self, command: Sequence[str], *, resumes: bool = False) -> int | None:
        """Start the recipe's ranks, or join them in this process.

        Args:
            command: of one rank: a program and its arguments.
            resumes: the run resumes, so ranks that do not write get a copy of the run folder.

        Returns:
            The exit code of the started ranks; None if this process trains.

        Raises:
            PlanError: the started ranks are not the recipe's.
        """
        from finetooth_core.planning.joined import JoinedRank
        from finetooth_core.planning.ranks import join

        joined = join(self.context)
        if not isinstance(joined, JoinedRank):
            return None if joined is None else joined(command)
        self.joined, self._context = joined, None
        if not joined.writes:
            self.folder = run_folder.scratch(self.folder, resumes=resumes or self.resuming is not None)
            self.say = lambda line: None
        return None

    @property
    def writes(self) -> bool:
        """Whether this process writes the run folder and the user's output."""
        return self.joined is None or self.joined.writes

    def check_output(self) -> None:
        """Checks that a new run can use the folder; a resumed run has its own already.

        Raises:
            UserError: the run folder already holds something, or cannot be made.
        """
        if self.resuming is None:
            check_unused(self.folder)

    def check_admitted(self) -> None:
        """Checks that each exporter of the recipe accepts what it trains; else a `UserError` says why."""
        recipe = self.job.context.recipe
        check_admitted(self.plugins.catalog, {**recipe.as_dict(), "model": recipe.dump_model_name()})

    def check_memory(self, without: Collection[str] = ()) -> None:
        """Checks that the plan fits into memory.

        Args:
            without: parts of the estimate that do not count; see `memory_check.OF_TRAINING`.

        Raises:
            PlanError: the plan needs more memory than there is, or than is free now, and the recipe does not accept
                that; it says what would fit.
        """
        from finetooth_core.planning.memory_check import check_memory

        if not self.recipe.train.accept_memory:
            check_memory(self.job, without)

    def run(self, planned: Callable[[], None] = lambda: None) -> Outcome:
        """Train, or continue where a run was interrupted.

        Args:
            planned: called once the plan is decided, before the weights are loaded.

        Raises:
            FinetoothError: bad input (exit code 2), or the run failed (1).
        """
        from finetooth_core.planning import ranks

        if self.recipe.data.no_egress and not closed_network.is_closed():
            own = [item if isinstance(item, str) else item["use"] for item in self.recipe.anchored().get("plugins", [])]
            return closed_network.train(self.recipe.dump_yaml(), self.folder, own, self.resuming)
        closed_network.check_closed(wanted=self.recipe.data.no_egress)
        if self.joined is None and ranks.started_by(self.context):  # finetooth.run in a program at every rank
            self.start(())
        ranks.check_started(self.recipe, self.joined)
        with ranks.among(self.joined, self.folder) if self.joined is not None else nullcontext():
            return self._run(planned)

    def _run(self, planned: Callable[[], None]) -> Outcome:
        from finetooth_saving.run_lock import run_lock

        self.check_output()
        if not self.data:
            raise UserError("this session was made without data", action="make it with data=True to run it")
        made = make_folder(self.folder)
        with run_lock(self.folder), in_folder(self.place):
            if self.resuming is not None:
                self.decide()
                planned()
                return self._go_on(self.resuming)
            self.check_output()  # of two runs at once, one got the folder
            try:
                self._begin(planned)
            except BaseException:
                withdraw(self.folder, made)
                raise
            return self._loop().run()

    def _begin(self, planned: Callable[[], None]) -> None:
        """Do everything before the first step.

        The recipe is written first: reading data and weights may take long, and a run that is killed meanwhile can be
        resumed.

        Raises:
            FinetoothError: bad input; or most training rows are left out, or memory does not suffice, and the user has
                not accepted it.
        """
        from finetooth_rows.choices.left_out import refuse_most

        self.run_id = secrets.token_hex(8)
        record_own(self.recipe.as_dict(), self.recipe.folder)
        self._write_beginning()
        self.check_admitted()
        if self.joined is not None:
            self.run_id = self.joined.same(self.run_id)
        planned()
        if not self.recipe.data.accept_dropped:
            refuse_most(self.reports)
        self.check_memory()
        self._write_run()
        self.build()

    def _go_on(self, resuming: Resuming) -> Outcome:
        from finetooth_saving.found_checkpoints import NoCheckpoint

        from finetooth_core.checkpoints.resuming import check, find

        self.run_id = run_id(self.folder)
        try:
            checkpoint = find(self._present(), resuming)
        except NoCheckpoint:
            if resuming.at is not None:
                raise
            return self._begin_anew()
        self.run_id = str(checkpoint.manifest.get("run", self.run_id))
        self.check_memory()
        resumed = check(self._present(), resuming, checkpoint, stands_on=self.stands_on, environment=self.environment)
        loop = self._loop(epoch=checkpoint.state.epoch)
        loop.go_on(checkpoint, resumed)
        self._write_run()
        (self.folder / RESULT).unlink(missing_ok=True)  # it said how the run ended before
        self.say(f"resuming after step {checkpoint.state.step}, from {checkpoint.folder}")
        return loop.run()

    def _present(self) -> ThisRun:
        from finetooth_core.checkpoints.resuming import ThisRun

        keeping = self.job.keeping
        assert keeping is not None
        return ThisRun(self.folder, self.run_id, self.recipe, self.plan, keeping, self.plugins, self.say)

    def _begin_anew(self) -> Outcome:
        """Resume a run without a checkpoint: leave it unchanged if it is done, else start it again.

        Raises:
            UserError: it is done and the recipe makes it longer, or it was stopped without a saved state.
        """
        from finetooth_rows.choices.left_out import refuse_most
        from finetooth_saving import quarantine

        ended = run_folder.outcome_of(self.folder)
        if ended is not None and ended.steps and ended.status in ("done", "stopped"):
            problem = f"the run is {ended.status} after {ended.steps} steps"
            longer = plan_of(self.folder).get("total_steps") != self.plan.total_steps
            if longer or ended.status == "stopped":
                raise UserError(
                    f"{self.folder}: {problem} and kept no checkpoint to resume from",
                    action=f"start another run, from what this one trained: model={self.folder}",
                )
            self.say(f"{problem}: nothing is left to do")
            return ended
        if not self.recipe.data.accept_dropped:
            refuse_most(self.job.reports)
        self.check_memory()
        assert self.job.keeping is not None
        aside = len(quarantine.reasons(self.job.keeping.folder))
        reason = f"no checkpoint of the run counts, {aside} in quarantine" if aside else "the run saved no checkpoint"
        self.say(f"{reason}; it starts over")
        self._write_run()
        return self._loop().run(again=True)

    def _write_beginning(self) -> None:
        write_json(self.folder / RUN, {"id": self.run_id, "started_in": str(Path.cwd())})
        write_text(self.folder / RECIPE, self.recipe.dump_yaml())  # last: without it the folder is not yet a run

    def _write_run(self) -> None:
        from finetooth_core.planning.plan import as_json

        write_json(self.folder / PLAN, as_json(self.job.plan))
        self._write_beginning()  # where the model is may have been found meanwhile

    def _loop(self, epoch: float = 0.0) -> Loop:
        from finetooth_saving.alike import Alike
        from finetooth_saving.keeper import Keeper

        from finetooth_core.planning.plan import as_json
        from finetooth_core.plugins.events import Events, Progress
        from finetooth_core.running.loop import Loop

        job, engine = self.job, self.engine
        if self.joined is not None:
            self.joined.check_alike(self._digests())
        job = replace(job, trackers=(*job.trackers, *self.added_trackers) if self.writes else ())
        assert job.method is not None
        job.context.log.announce = self.say  # from now on notes come too late for the plan
        progress = Progress(self.folder.name, self.folder, job.plan, job.prepared.total_steps)
        events = Events(self.plugins.events, progress, self.say)
        texts = {RECIPE: self.recipe.dump_yaml(), PLAN: json.dumps(as_json(job.plan), indent=2, sort_keys=True) + "\n"}
        assert job.keeping is not None
        place = job.request.place
        alike = Alike(place.collective, together=bool(place.sharding or place.shard_optimizer))
        keeper = Keeper(
            job.keeping, texts, events.objection, self.say, known=lambda: self.stands_on, epoch=epoch, alike=alike
        )
        manifest = {**self.manifest, "run": self.run_id, "environment": self.environment}
        loop = Loop(job, job.method, engine, events, progress, manifest, self.say, keeper)
        self.record = loop.record
        return loop

    def _digests(self) -> dict[str, str]:
        """Hashes of what must be equal at every rank."""
        from finetooth_core.planning.ranks import digest

        assert self.joined is not None
        plan, train = self.plan, vars(self.plan.train)
        decided = {
            name: value for name, value in train.items() if name not in ("micro_batch_tokens", "gradient_checkpointing")
        }
        return {
            "the recipe": digest({name: value for name, value in self.recipe.as_dict().items() if name != "output"}),
            "the plan": digest([plan.picks, plan.options, plan.total_steps, decided]),
            "the version of a plugin": digest(dict(self.plugins.versions)),
            "the base model or the data": digest(self.stands_on),
            "what trains": self.joined.strategy.digest(self.engine),
        }

    @cached_property
    def stands_on(self) -> dict[str, Any]:
        """Hashes of the base model's files, of the data from the plan, and of the files that settings name."""
        from finetooth_saving.named_files import named_files

        data = {d.setting: d.value for d in self.plan.decisions if d.setting.endswith("sha256")}
        base, named = self.job.request.base.model, named_files(self.recipe.as_dict(), self.job.request.roles)
        return {"base": dict(base.contents), "base_digest": base.digest, "data": data, "named": named}

    @property
    def environment(self) -> dict[str, str]:
        """The environment on which the numbers depend, besides the plan."""
        return {"python": platform.python_version(), **closed_network.facts(), **self.engine.info.environment}

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """The origin recorded in every saved folder."""
        recipe = json.dumps(self.recipe.as_dict(), sort_keys=True, default=str).encode()
        return {
            "recipe_sha256": hashlib.sha256(recipe).hexdigest(),
            "plan_sha256": self.plan.hash,
            "model": self.recipe.model.name,
            "base_revision": self.job.request.base.model.revision,
            "picks": dict(self.plan.picks),
            "plugins": dict(self.plugins.versions),
            **self._lineage(),
        }

    def _lineage(self) -> dict[str, Any]:
        """Its origin: hashes of the data, and the runs before it."""
        from finetooth_core.models.stages import ancestor, data_hashes
        from finetooth_core.planning.plan import as_json

        data = data_hashes(as_json(self.plan)["decisions"])
        context = self.job.context
        parent = {"parent": ancestor(context.run.folder, self.recipe.model.name).as_json} if context.run else {}
        known = {"model_revision": context.model.revision} if context.model.revision else {}
        return {**({"data": data} if data else {}), **known, **parent}


def opener(plugins: Plugins) -> OpenModel:
    """Opens models for a context, with the same plugins."""
    from finetooth_core.models.opened_model import open_model
    from finetooth_core.settings.recipe import load

    def opened(reference: str, changes: Mapping[str, Any] | None, say: Callable[[str], None]) -> Opened:
        run = run_folder.got_back(reference, plugins.catalog)
        return open_model(run, lambda recipe: Session(load(recipe), plugins, say=say, data=False), changes)

    return opened


def in_folder(place: Path | None) -> AbstractContextManager[None]:
    """Inside the `with` block, relative paths are of this folder; None changes nothing."""
    return nullcontext() if place is None else chdir(place)


def _unused(name: str) -> Path:
    """A new folder of runs, named after the time; with a number if it exists: two runs may start in one second."""
    folder = Path("runs", f"{name}-{time.strftime('%Y%m%d-%H%M%S')}")
    numbered = (folder.with_name(f"{folder.name}-{number}") for number in count(2))
    return folder if not folder.exists() else next(path for path in numbered if not path.exists())
