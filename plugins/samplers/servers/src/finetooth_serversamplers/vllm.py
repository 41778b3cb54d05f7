"""A vLLM server as a sampler: the adapter that trains is put in before every batch.

What is asked of vLLM, all of its documented HTTP interface (0.10.2 and later): `POST /v1/completions` with
`return_token_ids`, `POST /v1/load_lora_adapter` and `/v1/unload_lora_adapter` (environment
`VLLM_ALLOW_RUNTIME_LORA_UPDATING=True`), `GET /v1/models`, `GET /health`, and with `sleep` also `POST /sleep` and
`/wake_up` (`VLLM_SERVER_DEV_MODE=1`).

An adapter is served under a name that is used once, `ft-EPOCH-VERSION-CHECKSUM`: the epoch is drawn anew in every
process, so that what an earlier one loaded is never taken for this one's; the checksum is of the adapter's files. Every
answer says the name, and one with another name ends the batch.
"""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from finetooth_hooks import Context, Engine, PlanError, Sampling
from finetooth_hooks.rollouts import Prompt, Sampled
from pydantic import Field

from finetooth_serversamplers.asking import Server, ServerGone
from finetooth_serversamplers.completions import Completions
from finetooth_serversamplers.process import Process
from finetooth_serversamplers.serving import ServerOptions, ServerSampler

FOLDER = "sampler"
"""In the run folder: the adapter that the server has."""


class VllmOptions(ServerOptions):
    """Options of `vllm`."""

    start: list[str] = Field(default_factory=list)
    """Command that starts the server, word by word; left out, it runs already."""
    restarts: int = Field(default=1, ge=0)
    """How often in a row a server that died or hangs is started again, with `start`."""
    ready: float = Field(default=300.0, gt=0)
    """Seconds that it may take to start."""
    sleep: bool = False
    """Whether the server gives its memory back while the engine trains, where both are on one device."""


class VllmSampler(ServerSampler):
    """See `finetooth_hooks.protocols.Sampler`."""

    def __init__(self, options: VllmOptions, context: Context) -> None:
        super().__init__(options, context, "sampler vllm")
        self._vllm = options
        self._process = Process(options.start, self._asking, options.ready)
        self._epoch = secrets.token_hex(4)
        self._loaded = ""
        self._version = -1

    def sample(self, engine: Engine, prompts: Sequence[Prompt], sampling: Sampling) -> Sampled:
        """
        Raises:
            EngineError: the server is not there, does not answer in time, or gives what was not asked for.
            PlanError: what trains is no adapter, or the server does not say what it draws from.
        """
        for left in range(self._vllm.restarts, -1, -1):
            try:
                self._process.begin()
                return self._asking.run(lambda server: self._sample(server, engine, prompts, sampling))
            except ServerGone as error:
                self._loaded, self._version = "", -1
                if not self._vllm.start or not left:
                    raise
                self._context.note(f"{error.problem}: it is started again", topic="sampler vllm started again")
                self._process.end()
        raise AssertionError("the loop returns or raises")

    async def _sample(self, server: Server, engine: Engine, prompts: Sequence[Prompt], sampling: Sampling) -> Sampled:
        if self._vllm.sleep and (await server.get("/is_sleeping"))["is_sleeping"]:
            await server.post("/wake_up")
        if engine.weights_version != self._version:
            await self._put(server, engine)
        kept = bool(sampling.top_k) or sampling.top_p < 1.0
        extra: dict[str, Any] = {"skip_special_tokens": False, "return_tokens_as_token_ids": True}
        if sampling.stop_ids is None:
            extra["stop_token_ids"] = list(self._context.renderer.stop_ids)
        how = Completions(self._context, self._loaded, self._version, extra, kept)
        await self.check(server, how, prompts, sampling)
        found = await how.rollouts(server, prompts, sampling)
        if self._vllm.sleep:
            await server.post("/sleep?level=1")
        return Sampled(found)

    async def _put(self, server: Server, engine: Engine) -> None:
        """Put the adapter in as it is now.

        Raises:
            PlanError: what trains is no low-rank adapter.
            EngineError: the server does not have it afterwards.
        """
        version, folder = engine.weights_version, self._context.folder / FOLDER
        new = folder / f"{self._epoch}-{version}"
        shutil.rmtree(new, ignore_errors=True)
        engine.export(new)
        if not (new / "adapter_model.safetensors").is_file():
            raise PlanError(
                "sampler vllm: what trains is no adapter that vLLM loads",
                action="set adapter: lora, or another sampler",
            )
        base, name = await self.base(server), f"ft-{self._epoch}-{version}-{checksum(new)[:12]}"
        await server.post("/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(new.resolve())})
        offered = {str(one["id"]): one for one in (await server.get("/v1/models"))["data"]}
        if name not in offered:
            raise self._asking.wrong(f"said that it loaded {name}, and does not offer it")
        parent = offered[name].get("parent")
        if parent not in (None, base):
            raise self._asking.wrong(f"loaded {name} on {parent!r}, not on {base!r}", "set model of the sampler")
        if self._loaded:
            await server.post("/v1/unload_lora_adapter", {"lora_name": self._loaded})
        for old in folder.iterdir():
            if old != new:
                shutil.rmtree(old)
        self._loaded, self._version = name, version


def checksum(folder: Path) -> str:
    """SHA-256 over the names and contents of a folder's files."""
    found = sha256()
    for path in sorted(one for one in folder.rglob("*") if one.is_file()):
        found.update(path.relative_to(folder).as_posix().encode() + b"\0" + sha256(path.read_bytes()).digest())
    return found.hexdigest()


def build(options: VllmOptions, context: Context) -> VllmSampler:
    """Builder of the sampler `vllm`."""
    return VllmSampler(options, context)
