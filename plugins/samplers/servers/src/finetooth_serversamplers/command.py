"""The command `ft serve vllm`, which starts a vLLM server for the sampler `vllm`."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
from finetooth_hooks import CommandContext, UserError
from finetooth_toolbox.loopback import is_loopback

RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""Ranks that vLLM supports."""
LORA = {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True"}
"""Environment with which a server loads adapters while it runs."""
WORKERS = {"VLLM_SERVER_DEV_MODE": "1"}
"""Environment with which clients may call its workers, and send it to sleep."""
EXTENSION = "finetooth_serversamplers.worker.Weights"


@click.command(name="vllm")
@click.argument("model")
@click.argument("further", nargs=-1, type=click.UNPROCESSED, metavar="[-- WORDS]")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=8000, show_default=True, type=click.IntRange(1, 65535), help="Port to listen on.")
@click.option("--weights", default="adapter", show_default=True, type=click.Choice(["adapter", "full"]), help="What a "
              "run loads: `weights` of the sampler. `full` needs finetooth-serversamplers next to vLLM.")  # fmt: skip
@click.option("--max-lora-rank", default=16, show_default=True, type=click.IntRange(1, RANKS[-1]), help="Largest rank "
              "of an adapter, rounded up to one that vLLM supports.")  # fmt: skip
@click.option("--sleep", is_flag=True, help="For `sleep: true` of the sampler: the server frees its memory.")
@click.option("--dtype", default="", help="Type of the weights, such as bfloat16; default: the model's.")
@click.option("--max-model-len", type=click.IntRange(1), help="Most tokens of a prompt with its answer.")
@click.option("--gpu-memory-utilization", type=click.FloatRange(0, 1, min_open=True), help="Share of a device's memory "
              "that the server takes.")  # fmt: skip
@click.option("--tensor-parallel-size", type=click.IntRange(1), help="Devices that share each layer.")
@click.option("--data-parallel-size", type=click.IntRange(1), help="Copies of the model.")
@click.option("--enable-prefix-caching/--no-enable-prefix-caching", default=None, help="Whether prompts that begin "
              "alike share that part's computation; default: vLLM's.")  # fmt: skip
@click.option("--reasoning-parser", default="", help="Parser that removes thoughts from chat answers, such as qwen3.")
@click.option("--enforce-eager", is_flag=True, help="Run without CUDA graphs, for models that vLLM cannot capture.")
@click.option("--vllm", "program", default="vllm", show_default=True, help="Path of vLLM's program, if it is "
              "installed in another environment.")  # fmt: skip
@click.option("--print", "only_print", is_flag=True, help="Show the command, and start nothing.")
@click.pass_obj
def command(
    obj: CommandContext, /, model: str, further: tuple[str, ...], program: str, only_print: bool, **given: Any
) -> None:
    """Start a vLLM server for MODEL, ready for the rollouts of `method.sampler: vllm`.

    Words after `--` are vLLM's own options, passed on unchanged:

    \b
    ft serve vllm Qwen/Qwen3-0.6B --max-lora-rank 32 --gpu-memory-utilization 0.9
    ft serve vllm Qwen/Qwen3-0.6B --print -- --seed 3
    """
    environment = settings(given)
    if environment.keys() & WORKERS and not is_loopback(given["host"]):
        raise UserError(
            f"--host {given['host']} can be reached by others, and with --weights full or --sleep they could call the "
            "server's workers",
            action="listen on 127.0.0.1, and forward the port to where the run is",
        )
    words = ["serve", name_for_vllm(obj, model), *options(given), *further]
    if only_print:
        click.echo(shlex.join([*(f"{name}={value}" for name, value in environment.items()), program, *words]))
        return
    path = shutil.which(program) or shutil.which(program, path=str(Path(sys.executable).parent))
    if path is None:
        raise UserError(
            f"ft serve vllm: no program {program!r} here",
            action="install vllm in an environment of its own, and give its program with --vllm PATH",
        )
    sys.stdout.flush()
    os.execve(path, [path, *words], {**environment, **os.environ})


def settings(given: Mapping[str, Any]) -> dict[str, str]:
    """Environment of the server; variables that are already set have priority.

    Args:
        given: options of the command by name.
    """
    needs_workers = given["sleep"] or given["weights"] == "full"
    return {**(LORA if given["weights"] == "adapter" else {}), **(WORKERS if needs_workers else {})}


def options(given: Mapping[str, Any]) -> list[str]:
    """Options of `vllm serve` (0.10.2 and later).

    Args:
        given: options of the command by name.
    """
    words = ["--host", given["host"], "--port", str(given["port"]), "--logprobs-mode", "processed_logprobs"]
    if given["weights"] == "adapter":
        room = next(rank for rank in RANKS if rank >= given["max_lora_rank"])
        words += ["--enable-lora", "--max-lora-rank", str(room)]
    else:
        words += ["--worker-extension-cls", EXTENSION]
    for name in ("dtype", "max_model_len", "gpu_memory_utilization", "tensor_parallel_size", "data_parallel_size",
                 "reasoning_parser"):  # fmt: skip
        if given[name]:
            words += ["--" + name.replace("_", "-"), str(given[name])]
    if given["enable_prefix_caching"] is not None:
        words.append("--enable-prefix-caching" if given["enable_prefix_caching"] else "--no-enable-prefix-caching")
    words += ["--enforce-eager"] if given["enforce_eager"] else []
    return [*words, *(["--enable-sleep-mode"] if given["sleep"] else [])]


def name_for_vllm(obj: CommandContext, model: str) -> str:
    """A model's name for vLLM: a folder or a hub id unchanged; else that of a loader that knows the name.

    Raises:
        FinetoothError: no loader knows the name.
    """
    if "/" in model or Path(model).is_dir():
        return model
    info = obj.context(obj.load({"model": model})).model
    return info.published or info.reference
