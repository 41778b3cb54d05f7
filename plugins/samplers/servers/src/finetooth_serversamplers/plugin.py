"""Rollouts and answers from servers: vLLM, or any that speaks OpenAI's protocol and returns token ids."""

from __future__ import annotations

from collections.abc import Iterator

from finetooth_hooks import Backend, Command, Sampler, hookimpl

CAPABILITIES = frozenset({"generate", "continuous", "adapters", "schema", "min_p", "additions"})


@hookimpl
def ft_backends() -> Iterator[Backend]:
    yield Backend(
        name="vllm",
        build="finetooth_serversamplers.backend:VllmBackend",
        summary="answers from a running vLLM server, for ft chat and ft serve openai; cannot train",
        framework="torch",
        capabilities=CAPABILITIES,
        outputs=frozenset(),
        remote=True,
    )


@hookimpl
def ft_commands() -> Iterator[Command]:
    yield Command(
        name="serve-vllm",
        build="finetooth_serversamplers.command:command",
        summary="start a vLLM server, ready for rollouts",
        section="Serve",
    )


@hookimpl
def ft_samplers() -> Iterator[Sampler]:
    yield Sampler(
        name="openai",
        build="finetooth_serversamplers.openai:OpenAISampler",
        summary="a server with OpenAI's completions API that returns token ids; its weights never change",
        remote=True,
    )
    yield Sampler(
        name="vllm",
        build="finetooth_serversamplers.vllm:VllmSampler",
        summary="a vLLM server that loads the trained adapter or model before every batch",
        remote=True,
    )
