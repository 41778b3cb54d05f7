"""Rollouts from the engine that trains, recorded ones, and those of a function."""

from __future__ import annotations

from collections.abc import Iterator

from finetooth_hooks import Sampler, hookimpl


@hookimpl
def ft_samplers() -> Iterator[Sampler]:
    yield Sampler(
        name="engine",
        build="finetooth_enginesampler.sampler:EngineSampler",
        summary="the training engine itself, with its current weights",
        default=True,
    )
    yield Sampler(
        name="kept_rollouts",
        build="finetooth_enginesampler.recorded:RecordedSampler",
        summary="the rollouts that another run saved; trains on them again, and samples nothing",
        example={"run": "runs/before"},
        expected_failures={"samples_each_prompt_as_often_as_asked": "it has what was recorded, and nothing else"},
    )
    yield Sampler(
        name="python_function",
        build="finetooth_enginesampler.function:build",
        summary="your own Python function, which samples through the engine or another sampler",
        example={"file": "{folder}/answering.py", "function": "answered"},
        example_files={"answering.py": "def answered(prompt_ids, generate):\n    return generate(prompt_ids)\n"},
    )
