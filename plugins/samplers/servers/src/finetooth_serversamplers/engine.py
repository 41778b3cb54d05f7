"""The engine whose model is at a vLLM server. It only samples: it computes nothing locally, and cannot train."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
from finetooth_hooks import (
    Completion,
    Datum,
    EngineError,
    EngineInfo,
    Forward,
    Generated,
    LossSpec,
    Sampling,
    Stepped,
)
from finetooth_hooks.bases import EngineBase
from finetooth_hooks.compute.held import HeldAdapter, Stack
from finetooth_hooks.engine import Counts, StepSettings
from finetooth_hooks.protocols import EngineRequest
from numpy.typing import NDArray

from finetooth_serversamplers.asking import Asking, Server
from finetooth_serversamplers.checksums import checksum
from finetooth_serversamplers.plugin import CAPABILITIES
from finetooth_serversamplers.streamed_batch import LoadedAdapter, ServedText, StreamedBatch
from finetooth_serversamplers.wire import Wire

AT = "vllm.json"
"""File of an export that names the weights."""

ADAPTER = "adapter_config.json"


class VllmEngine(EngineBase):
    """See `finetooth_hooks.engine.Engine`. Its own weights are the server's base, or the adapter of `restore`; further
    ones can be held.

    Args:
        base: name of the model at the server.
        silence: seconds within which the next token of an answer must come.
        together: number of simultaneous requests.
    """

    capabilities = CAPABILITIES

    def __init__(self, request: EngineRequest, asking: Asking, base: str, *, silence: float, together: int) -> None:
        self._asking, self._base, self._own = asking, base, base
        text, facts = request.text, request.base.facts
        self._text = ServedText(text.tokenizer, tuple(text.stop_ids), facts.vocab_size)
        self._wire = Wire(asking, silence, together)
        self._info = EngineInfo(
            framework="torch",
            device=asking.url,
            precision="server",
            parameters=request.base.model.parameters,
            trained=0,
            max_length=facts.max_positions,
            environment={"server": asking.url, "model": base},
        )

    @property
    def info(self) -> EngineInfo:
        return self._info

    @property
    def weights_version(self) -> int:
        return 0

    # --- answer -------------------------------------------------------------------------------------------------------

    def running_batch(self) -> StreamedBatch:
        return StreamedBatch(self._wire, self._text, self._own)

    def generate(self, prompts: Sequence[Sequence[int]], sampling: Sampling) -> Generated:
        batch, seen, places = self.running_batch(), Counter[tuple[int, ...]](), dict[int, int]()
        completions: list[dict[int, Completion]] = [{} for _ in prompts]
        try:
            for place, prompt in enumerate(prompts):
                first = seen[tuple(prompt)] * sampling.n
                seen[tuple(prompt)] += 1
                places[batch.add(prompt, sampling, first=first)] = place
            while len(batch):
                for token in batch.step():
                    if token.completion is not None:
                        completions[places[token.request]][token.sample] = token.completion
        finally:
            batch.close()
        return Generated([[of[sample] for sample in range(sampling.n)] for of in completions])

    def hold(self, path: Path | Stack | None) -> HeldAdapter | None:
        """Make the server load an adapter from its folder, which the server must be able to read.

        Raises:
            EngineError: it is a sum or weighted, since vLLM computes with one unweighted adapter at a time; or the
                server refuses it.
        """
        if path is None:
            return LoadedAdapter(self._base)
        stack = [(path, 1.0)] if isinstance(path, Path) else list(path)
        if len(stack) != 1 or stack[0][1] != 1.0:
            raise EngineError(
                "backend vllm: the server computes with one adapter at a time, not with a sum of several",
                action="ask for one adapter, or merge them with ft adapters merge",
            )
        return LoadedAdapter(self._load(stack[0][0]))

    def _load(self, folder: Path) -> str:
        """Name of an adapter at the server, a hash of its content, so that equal ones are loaded once."""
        if not (folder / ADAPTER).is_file():
            raise EngineError(f"backend vllm: {folder} holds no adapter that vLLM loads", action="name an adapter")
        name = f"ft-{checksum(folder)[:16]}"

        async def work(server: Server) -> None:
            if await self._offers(server, name):
                return
            await server.post("/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(folder.resolve())})
            if not await self._offers(server, name):
                raise self._asking.wrong(f"reported that it loaded {name}, but does not offer it")

        self._asking.run(work)
        return name

    async def _offers(self, server: Server, name: str) -> bool:
        return any(model["id"] == name for model in (await server.get("/v1/models"))["data"])

    # --- what it has of weights ---------------------------------------------------------------------------------------

    def export(self, path: Path) -> None:
        path.mkdir(parents=True, exist_ok=True)
        about = {"url": self._asking.url, "model": self._own}
        (path / AT).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")

    def restore(self, path: Path) -> None:
        if (path / AT).is_file():
            self._own = str(json.loads((path / AT).read_text(encoding="utf-8"))["model"])
        else:
            self._own = self._load(path)

    # --- what it does not do ------------------------------------------------------------------------------------------

    def set_total_steps(self, total: int | None) -> None:
        """Ignore the number of steps, since the engine does not train."""

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
        raise self._only_answers("evaluate data, which top_logprobs needs too")

    def forward_backward(self, data: Sequence[Datum], loss: LossSpec, *, normalizer: Counts | None = None) -> Forward:
        raise self._only_answers("train")

    def step(self, *, metrics: Mapping[str, float] | None = None, settings: StepSettings | None = None) -> Stepped:
        raise self._only_answers("train")

    def logprobs(self, data: Sequence[Datum], *, role: str = "policy") -> list[NDArray[np.float32]]:
        raise self._only_answers("score data")

    def save(self, path: Path) -> None:
        raise self._only_answers("save a state")

    def load(self, path: Path) -> None:
        raise self._only_answers("load a state")

    def _only_answers(self, do: str) -> EngineError:
        return EngineError(
            f"backend vllm: the model is at {self._asking.url}, which only answers and does not {do}",
            action="leave backend out of the recipe for that",
        )
