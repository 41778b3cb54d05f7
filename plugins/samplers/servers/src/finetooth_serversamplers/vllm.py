"""A vLLM server as a sampler, which loads the trained adapter or whole weights before every batch.

The used parts of vLLM's documented HTTP interface (0.10.2 and later): `POST /v1/completions` with `return_token_ids`,
`POST /v1/load_lora_adapter` and `/v1/unload_lora_adapter` (environment `VLLM_ALLOW_RUNTIME_LORA_UPDATING=True`), `GET
/v1/models`, `GET /health`, and with `sleep` also `POST /sleep` and `/wake_up`, `GET /is_paused` and `POST /resume`
(`VLLM_SERVER_DEV_MODE=1`). A server that the sampler starts gets these settings.

Whole weights (`weights: full`) are written into the run folder and read there by the server's workers, with
`worker.Weights` mixed in: `POST /collective_rpc` and `/reset_prefix_cache` (`VLLM_SERVER_DEV_MODE=1`). Each worker
compares the files with the checksum in their name, and remembers the name; the sampler checks it before and after every
batch.

An adapter has a unique name at the server, `ft-EPOCH-VERSION-CHECKSUM`: the epoch is random in every process, so that
adapters of earlier processes are never confused with this one's; the checksum covers the adapter's files. Every answer
contains the name, and a wrong name ends the batch.
"""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from finetooth_hooks import Context, Engine, PlanError, Sampling
from finetooth_hooks.rollouts import Prompt, Sampled
from pydantic import Field

from finetooth_serversamplers.asking import RESUME, Server, ServerGone
from finetooth_serversamplers.checksums import weights_name
from finetooth_serversamplers.completions import Completions
from finetooth_serversamplers.process import Process
from finetooth_serversamplers.serving import ServerOptions, ServerSampler

FOLDER = "sampler"
"""Folder in the run folder with the server's adapter."""


SETTINGS = {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True", "VLLM_SERVER_DEV_MODE": "1"}
"""Environment variables for a server that the sampler starts, unless set."""


class VllmOptions(ServerOptions):
    """Options of `vllm`."""

    start: list[str] = Field(default_factory=list)
    """Command that starts the server, word by word. Left out, it must already run."""
    restarts: int = Field(default=1, ge=0)
    """With `start`: how often in a row a server that died or hangs is restarted."""
    ready: float = Field(default=300.0, gt=0)
    """Seconds that the server may take to start."""
    wait: float = Field(default=0.0, ge=0)
    """Seconds to wait, before the first batch, for a server that was started elsewhere."""
    weights: Literal["adapter", "full"] = "adapter"
    """What the server loads: the adapter, or the whole model if all of it trains. For the whole model the server reads
    the run folder, and runs with `--worker-extension-cls finetooth_serversamplers.worker.Weights`."""
    sleep: bool = False
    """Whether the server frees its memory while the engine trains, if both use one device."""


class VllmSampler(ServerSampler):
    """See `finetooth_hooks.protocols.Sampler`."""

    def __init__(self, options: VllmOptions, context: Context) -> None:
        super().__init__(options, context, "sampler vllm")
        self._vllm = options
        self._process = Process(options.start, self._asking, options.ready, options.wait, SETTINGS)
        self._epoch = secrets.token_hex(4)
        self._loaded = ""
        self._version = -1

    def sample(self, engine: Engine, prompts: Sequence[Prompt], sampling: Sampling) -> Sampled:
        """Sample completions from vLLM with the current weights, and restart a server that ended. Only the first rank
        sends requests, and all ranks get the answers.

        Raises:
            EngineError: the server is unreachable, does not answer in time, or gives a wrong answer.
            PlanError: the run does not train an adapter, or the server's log-probabilities are not those of its
                sampling distribution.
        """
        new = self._folder(engine)
        if not engine.first(new.exists):  # all ranks export, since each may have a part of the weights
            part = new.with_name(f"{new.name}.part")
            shutil.rmtree(part, ignore_errors=True)
            engine.export(part)
            if engine.leads:
                part.rename(new)
            else:
                shutil.rmtree(part, ignore_errors=True)
        return engine.first(lambda: self._asked(engine, prompts, sampling))

    def _folder(self, engine: Engine) -> Path:
        """Folder of the weights for the server."""
        return self._context.folder / FOLDER / f"{self._epoch}-{engine.weights_version}"

    def _asked(self, engine: Engine, prompts: Sequence[Prompt], sampling: Sampling) -> Sampled:
        for left in range(self._vllm.restarts, -1, -1):
            try:
                self._process.begin()
                return self._asking.run(lambda server: self._sample(server, engine, prompts, sampling))
            except ServerGone as error:
                self._loaded, self._version = "", -1
                if not self._vllm.start or not left:
                    raise
                self._context.note(f"{error.problem}; the run starts it again", topic="sampler vllm started again")
                self._process.end()
        raise AssertionError("the loop returns or raises")

    async def _sample(self, server: Server, engine: Engine, prompts: Sequence[Prompt], sampling: Sampling) -> Sampled:
        if self._vllm.sleep:
            await _awake(server)
        if self._vllm.weights == "full":
            model = await self.base(server)
            if engine.weights_version != self._version or not await self._has(server):
                await self._put_whole(server, engine)
        else:
            if engine.weights_version != self._version:
                await self._put(server, engine)
            model = self._loaded
        leaves_out = sampling.leaves_out
        extra: dict[str, Any] = {"skip_special_tokens": False, "return_tokens_as_token_ids": True}
        if sampling.stop_ids is None:
            extra["stop_token_ids"] = list(self._context.renderer.stop_ids)
        extra["ignore_eos"] = True  # the end tokens are complete; otherwise the server would add the model's own
        how = Completions(self._context, model, self._version, extra, leaves_out)
        await self.check(server, how, prompts, sampling)
        rollouts = await how.rollouts(server, prompts, sampling)
        if self._vllm.weights == "full" and not await self._has(server):
            raise ServerGone(
                f"{self._asking.called}: {self._asking.url} was restarted while it answered, so it is not known "
                "which weights gave the answers",
                action=RESUME,
            )
        if self._vllm.sleep:
            await server.post("/sleep?level=1")
        return Sampled(rollouts)

    async def _put(self, server: Server, engine: Engine) -> None:
        """Load the present adapter into the server.

        Raises:
            PlanError: the run does not train a low-rank adapter.
            EngineError: the server lacks it afterwards.
        """
        new = self._written(engine, "adapter_model.safetensors")
        version = engine.weights_version
        base, name = await self.base(server), weights_name(self._epoch, version, new)
        await server.post("/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(new.resolve())})
        offered = {str(model["id"]): model for model in (await server.get("/v1/models"))["data"]}
        if name not in offered:
            raise self._asking.wrong(f"reported that it loaded {name}, but does not offer it")
        parent = offered[name].get("parent")
        if parent not in (None, base):
            raise self._asking.wrong(f"loaded {name} on {parent!r}, not on {base!r}", "set model of the sampler")
        if self._loaded:
            await server.post("/v1/unload_lora_adapter", {"lora_name": self._loaded})
        self._put_in(new, name, version)

    async def _put_whole(self, server: Server, engine: Engine) -> None:
        """Load the present whole model into the server.

        Raises:
            PlanError: the run does not train a whole model.
            EngineError: a worker lacks it afterwards.
        """
        new = self._written(engine, "*.safetensors", but="adapter_*")
        version = engine.weights_version
        name = weights_name(self._epoch, version, new)
        self._loaded, self._version = "", -1
        loaded = await self._each(server, "finetooth_load", [str(new.resolve()), name])
        if set(loaded) != {name}:
            raise self._asking.wrong(
                f"did not take the weights of {new}: its workers say {loaded}",
                "let it read the run folder, then ft resume RUN",
            )
        await server.post("/reset_prefix_cache")  # cached prefixes come from the earlier weights
        self._put_in(new, name, version)

    async def _has(self, server: Server) -> bool:
        """Whether every worker has the loaded weights; False after a restart.

        Raises:
            EngineError: a worker has other weights.
        """
        names = set(await self._each(server, "finetooth_weights", []))
        if names <= {self._loaded, ""}:
            return names == {self._loaded}
        others = ", ".join(sorted(names - {self._loaded}))
        raise self._asking.wrong(
            f"has the weights {others}, and not {self._loaded or 'those that it began with'}: another run loads "
            "its own",
            "give each run a server of its own",
        )

    async def _each(self, server: Server, method: str, args: list[str]) -> list[str]:
        """The result of every worker."""
        answer = await server.post("/collective_rpc", {"method": method, "args": args})
        try:
            return [str(result) for result in answer["results"]]
        except (TypeError, KeyError) as error:
            raise self._asking.wrong(
                f"gave no results of {method}",
                "start it with --worker-extension-cls finetooth_serversamplers.worker.Weights",
            ) from error

    def _written(self, engine: Engine, wanted: str, but: str = "") -> Path:
        """The folder with the exported weights.

        Args:
            wanted: pattern of required files.
            but: pattern of forbidden files.

        Raises:
            PlanError: the export has the other kind of weights.
        """
        new = self._folder(engine)
        if not any(new.glob(wanted)) or (but and any(new.glob(but))):
            what = "an adapter that vLLM loads" if self._vllm.weights == "adapter" else "a whole model"
            raise PlanError(
                f"sampler vllm: the run does not train {what}",
                action="set adapter: lora; or, if all weights train, weights: full of the sampler; or choose another "
                "sampler",
            )
        return new

    def _put_in(self, new: Path, name: str, version: int) -> None:
        """Record the loaded weights, and remove the earlier files."""
        for old in new.parent.iterdir():
            if old != new:
                shutil.rmtree(old)
        self._loaded, self._version = name, version


async def _awake(server: Server) -> None:
    """Wake the server so that it has its memory and answers requests: servers pause before they sleep, and waking does
    not resume all of them."""
    if (await server.get("/is_sleeping"))["is_sleeping"]:
        await server.post("/wake_up")
    if ((await server.get_if_there("/is_paused")) or {}).get("is_paused"):
        await server.post("/resume")
