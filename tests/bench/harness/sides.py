"""Parts of `make gpu` in which finetooth and others do the same, in turn, a process each."""

from __future__ import annotations

import gc
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

from harness.compare import same_rows
from harness.ground import LARGE, TINY_LARGE, Ground, Sizes, prepared, weights_of
from harness.process import run as contender
from harness.proofs import Proof

CONTENDERS = Path(__file__).parents[1] / "contenders"
TUNED = {"per_device_batch_size": 8, "dtype": "bfloat16", "bf16": True, "gradient_checkpointing": False}
"""TRL as its users set it for speed, where memory allows."""
LEAST = 60.0
"""Seconds that a turn may take although the part's time says less."""
LARGE_BYTES = 40 * 2**30
"""Of a card, for the model of 8 billion parameters."""

Sides = dict[str, tuple[str, dict[str, Any]]]
"""Who takes part, by name: the script, and what it is told in addition."""


@dataclass(frozen=True)
class Task:
    """What everybody does.

    Attributes:
        name: in the table.
        passes: FLOPs of a token, as a multiple of the model's weights.
        sides: who does it.
        spec: what all are told in addition.
    """

    name: str
    passes: int
    sides: Sides
    spec: dict[str, Any]


def trainers(ground: Ground, ours: str = "ours.py", theirs: str = "trl_peer.py") -> Sides:
    """Who trains; on a card, with those that are tuned for one.

    Args:
        ours, theirs: the scripts.
    """
    import torch
    from finetooth_kernels.fp8 import multiplies_fp8

    sizes = ground.sizes
    large = sizes.shape in (LARGE.shape, TINY_LARGE.shape)
    found: Sides = {"finetooth": (ours, {})}
    if find_spec("trl") is not None and not large:
        found["TRL"] = (theirs, {})
    if torch.cuda.is_available():
        tuned = {**TUNED, "per_device_batch_size": min(2, sizes.batch) if large else sizes.batch}
        if find_spec("trl") is not None:
            liger = find_spec("liger_kernel") is not None
            found[f"TRL, {'Liger, ' * liger}tuned"] = (theirs, {"tuned": {**tuned, "use_liger_kernel": liger}})
        if ground.python("unsloth"):
            found["unsloth"] = (theirs, {"tuned": tuned, "unsloth": True})
    if large:
        fast = {"backend": {"deterministic": False}}
        found["finetooth, backend.deterministic: false"] = (ours, fast)
        # as many tokens at once as two rows of TRL have
        both = "finetooth, backend.deterministic: false, train.micro_batch_tokens: 8192"
        found[both] = (ours, {**fast, "micro_batch_tokens": 8192})
        if multiplies_fp8(torch.device("cuda")):
            in_fp8 = {**fast, "precision": "fp8"}
            found["finetooth, backend.deterministic: false, train.precision: fp8"] = (ours, in_fp8)
    return found


def speed(ground: Ground) -> Proof:
    """Supervised fine-tuning next to TRL: same rows, same order."""
    sides = trainers(ground)
    tasks = [Task(name, passes, sides, {"adapter": name}) for name, passes in (("lora", 4), ("full", 6))]
    return side_by_side(ground, "Supervised fine-tuning", tasks)


def large(ground: Ground) -> Proof:
    """LoRA on 8 billion parameters, rows of 4,096 tokens; on a CPU a tiny model by the same code."""
    import torch

    sizes = LARGE if torch.cuda.is_available() else TINY_LARGE
    of = "8 billion parameters" if sizes is LARGE else "a tiny model"
    if sizes is LARGE and (has := torch.cuda.get_device_properties(0).total_memory) < LARGE_BYTES:
        return Proof(f"LoRA on {of}", notes=[f"This card has {has / 2**30:.0f} GiB, too few."])
    with tempfile.TemporaryDirectory(prefix="finetooth-gpu-large-", ignore_cleanup_errors=True) as folder:
        share = 0.9 if sizes is LARGE else 0.5  # the template's own tokens count in a short row
        made = prepared(Path(folder), sizes, sizes.rows, ground.model, share=share)
        bigger = replace(ground, folder=made.folder, model=made.model, rows=made.rows, sizes=sizes)
        gc.collect()
        torch.cuda.empty_cache()
        tasks = [Task("lora", 4, trainers(bigger), {"adapter": "lora"})]
        proof = side_by_side(bigger, f"LoRA on {of}, rows of up to {sizes.length:,} tokens", tasks)
    if sizes is LARGE:
        proof.notes.append("TRL, Liger, tuned computes 2 rows at once, finetooth the 16,384 tokens of its plan.")
    return proof


def preferences(ground: Ground) -> Proof:
    """DPO next to TRL: each row's own answer is chosen, that of the row before is rejected."""
    rows = [json.loads(line) for line in ground.rows.read_text(encoding="utf-8").splitlines()][: ground.sizes.rows // 2]
    pairs = [{"prompt": row["prompt"], "chosen": row["completion"], "rejected": rows[at - 1]["completion"]}
             for at, row in enumerate(rows)]  # fmt: skip
    file = ground.folder / "pairs.jsonl"
    file.write_text("".join(json.dumps(pair) + "\n" for pair in pairs), encoding="utf-8")
    spec = {"adapter": "lora", "method": "dpo", "rows_file": str(file), "rows": len(rows)}
    sides = trainers(ground, theirs="trl_preference_peer.py")
    proof = side_by_side(ground, "DPO", [Task("lora", 6, sides, spec)])
    proof.notes.append("2 of the 6 N FLOPs are the reference's. Tokens are those of both answers with their prompt.")
    return proof


def rollouts(ground: Ground) -> Proof:
    """GRPO next to TRL: prompts, reward and lengths are the same, each draws answers of its own."""
    drawn = ground.sizes.drawn
    sides = trainers(ground, "ours_grpo.py", "trl_grpo_peer.py")
    title = "GRPO: {batch_size} prompts a step, {generations} answers to each, {new_tokens} tokens".format(**drawn)
    proof = side_by_side(ground, title, [Task("lora", 6, sides, {"adapter": "lora", **drawn})])
    proof.notes.append("2 of the 6 N FLOPs read and draw a token; a prompt counts once for each of its answers.")
    return proof


def sampling(ground: Ground) -> Proof:
    """Sampling next to `generate` of transformers, and vLLM where it is: the same prompts, as many new tokens."""
    sys.path.insert(0, str(CONTENDERS))
    from peer_rows import chat_ids, prompt_completion
    from transformers import AutoTokenizer

    drawn, tokenizer = ground.sizes.drawn, AutoTokenizer.from_pretrained(ground.model)
    count = drawn["batch_size"] * drawn["generations"]
    rows = prompt_completion({"rows_file": ground.rows, "rows": count})
    prompts = [chat_ids(tokenizer, row["prompt"], row["completion"])[0] for row in rows]
    file = ground.folder / "prompts.json"
    file.write_text(json.dumps(prompts), encoding="utf-8")
    sides: Sides = {"finetooth": ("ours_generate.py", {}), "transformers": ("transformers_generate.py", {})}
    if ground.python("unsloth"):
        sides["unsloth"] = ("transformers_generate.py", {"unsloth": True})
    if ground.python("vllm"):
        sides["vLLM"] = ("vllm_generate.py", {})
    spec = {"prompts_file": str(file), "prompts": count, "new_tokens": drawn["new_tokens"]}
    title = f"Sampling: {count} prompts, {drawn['new_tokens']} new tokens each"
    proof = side_by_side(ground, title, [Task("sampled", 2, sides, spec)])
    proof.notes.append("Tokens are new ones, after a greedy pass that warms up.")
    proof.notes.append("vLLM takes memory in advance." if "vLLM" in sides else ground.absent("vllm", "vLLM"))
    return proof


def side_by_side(ground: Ground, title: str, tasks: Sequence[Task]) -> Proof:
    """Everybody in turn, a process each, over the same rows, until the part's time is over."""
    import finetooth
    import torch

    sys.path.insert(0, str(CONTENDERS))
    from ours import recipe

    sizes, adapter = ground.sizes, ground.folder / "adapter"
    spec: dict[str, Any] = {
        "model_folder": str(ground.model), "rows_file": str(ground.rows), "rows": sizes.rows, "batch_size": sizes.batch,
        "max_length": sizes.length, "length": sizes.length, "precision": sizes.precision,
        "adapter_folder": str(adapter), "adapter_dpo": str(adapter),
    }  # fmt: skip
    if not adapter.exists():
        told = {**spec, "adapter": "lora", "scratch": str(ground.folder)}
        finetooth.session(recipe(told), data=False).engine.export(adapter)
        gc.collect()  # the model, before other processes come
        torch.cuda.empty_cache()
    said = Proof(title)
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    took, turns = 0.0, [(each, who) for each in tasks for who in each.sides]
    for at in range(sizes.rounds):
        if at and ground.left < took:
            said.notes.append(f"{at} of {sizes.rounds} rounds: there was no time for more.")
            break
        began = time.monotonic()
        for turn, (task, who) in enumerate(turns):
            # nobody takes the time of all: twice a fair part of what is left
            seconds = max(LEAST, 2 * ground.left / (len(turns) - turn))
            result = _turn(ground, task, who, {**spec, "round": at}, seconds, said)
            if result:
                found.setdefault((task.name, who), []).append(result)
                print(f"{who}, {task.name}: {steady(result):,.0f} tokens/s", flush=True)
            ground.keep(_reported(said, tasks, sizes, found))
        took = time.monotonic() - began
    proof = _reported(said, tasks, sizes, found)
    if "unsloth" not in tasks[0].sides:
        proof.notes.append(ground.absent("unsloth", "unsloth"))
    return proof


def _reported(
    said: Proof, tasks: Sequence[Task], sizes: Sizes, found: dict[tuple[str, str], list[dict[str, Any]]]
) -> Proof:  # fmt: skip
    """The section of the turns so far.

    Args:
        said: its title, and what the turns said.
    """
    head = ("what", "who", "tokens/s", "peak GiB", "MFU", "first loss or reward", "last")
    proof = Proof(said.title, [head], [*said.notes], [*said.failed])
    for task in tasks:
        of = {who: found[task.name, who] for who in task.sides if (task.name, who) in found}
        if of:
            _report(proof, task, sizes, of)
    return proof


def _turn(
    ground: Ground, task: Task, who: str, spec: dict[str, Any], seconds: float, proof: Proof
) -> dict[str, Any]:  # fmt: skip
    """One turn of one contender; nothing if it failed or had no time. A peer that fails is a note, and no failure of
    ours."""
    if ground.left <= 0:
        proof.notes.append(f"{who}, {task.name}: not measured, the part's time was over.")
        return {}
    script, more = task.sides[who]
    python = ground.python({"unsloth": "unsloth", "vLLM": "vllm"}.get(who, "")) or sys.executable
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    if python != sys.executable:
        environment.pop("PYTHONPATH", None)  # it is of our interpreter
    logs = ground.folder if ground.file is None else ground.file.parent
    log = logs / f"{who}-{task.name}-{spec['round']}.log".replace(" ", "_").replace(":", "")
    done = contender(
        [python, str(CONTENDERS / script)],
        {**spec, **task.spec, **more},
        timeout=min(900.0, ground.left, seconds),
        environment=environment,
        log=log,
    )
    if done.failed:
        (proof.failed if who.startswith("finetooth") else proof.notes).append(f"{who}, {task.name}: {done.failed}")
        print(f"{who}, {task.name}: {done.failed}; {log}", flush=True)
        return {}
    return {**done.result, "contender": who, "peak": done.result["device_memory_bytes"] or done.peak_rss_bytes}


def _report(proof: Proof, task: Task, sizes: Sizes, found: dict[str, list[dict[str, Any]]]) -> None:
    """The rows and notes of a task."""
    rates = {who: median(map(steady, results)) for who, results in found.items()}
    held = {who: max(result["peak"] for result in results) for who, results in found.items()}
    weights, peak = sum(weights_of(sizes.shape)), peak_operations()
    for who, results in found.items():
        values = results[0].get("rewards") or results[0].get("losses")
        ends = [f"{values[at]:.3f}" for at in (0, -1)] if values else ["-", "-"]
        used = f"{rates[who] * task.passes * weights / peak:.1%}" if peak else "-"
        proof.rows.append((task.name, who, f"{rates[who]:,.0f}", f"{held[who] / 2**30:.2f}", used, *ends))
    of = f"of {peak / 1e12:.0f} TFLOP/s of dense bf16" if peak else "but the peak of this machine is not known"
    proof.notes.append(f"{task.name}: MFU counts {task.passes} N FLOPs a token, N = {weights:,}, {of}.")
    ours = [who for who in rates if who.startswith("finetooth")]
    for us, who in [(us, who) for us in ours for who in rates if who not in ours]:
        times, memory = rates[us] / rates[who], held[us] / held[who]
        about = f"{times:.2f} times the tokens per second of {who} at {memory:.2f} times its memory"
        proof.notes.append(f"{task.name}: {us} has {about}.")
    same = same_rows([result for results in found.values() for result in results])
    proof.failed += [f"{who}, {task.name}: it trained other rows or tokens" for who, yes in same.items() if not yes]


def peak_operations() -> float | None:
    """Dense bf16 operations a second of this card, where finetooth knows the data sheet."""
    import torch

    from harness.contact import own_hardware

    return own_hardware().facts().peak_flops.get("bf16") if torch.cuda.is_available() else None


def steady(result: dict[str, Any]) -> float:
    """Tokens per second without the first two steps, in which kernels are compiled and picked."""
    if "modes" in result:
        return float(result["modes"]["sampled"]["tokens_per_second"])
    seconds = result["step_s"][2:] or result["step_s"]
    return float(result["tokens"] / len(result["step_s"]) * len(seconds) / sum(seconds))
