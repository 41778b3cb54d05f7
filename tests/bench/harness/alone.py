"""Parts of `make gpu` that finetooth does alone: values, bits of a resumed run, memory, the loss head, kernels."""

from __future__ import annotations

import gc
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from itertools import pairwise
from typing import Any

from harness.ground import Ground, Sizes
from harness.machine import machine
from harness.proofs import Proof, table

HEAD, SMALL_HEAD = (16_384, 248_320, 2_048), (64, 512, 32)
"""Rows, ids and numbers of a row of the loss head that is measured on a card, and on a CPU."""


def values(ground: Ground) -> Proof:
    """Attention and kernels on the accelerator, against float64 as the conformance kit has it."""
    import torch
    from finetooth_core.plugins.manager import start
    from finetooth_kit import collect, run_check

    catalog = start(files=[]).catalog
    proof = ground.begun("Values against float64", ("entry", "passed", "not here", "failed"))
    for kind in ("attention", "kernel"):
        for registered in sorted(catalog.all(kind), key=lambda one: not one.entry.name.startswith("triton")):
            name = f"{kind} `{registered.entry.name}`"
            if torch.cuda.is_available() and not _serves(registered.entry, "cuda"):
                continue
            if name in {row[0] for row in proof.rows[1:]}:
                continue
            if ground.left <= 0:
                proof.notes.append(f"{name}: not checked, the part's time was over.")
                continue
            checks = collect(registered.entry, installed=True)
            results = [run_check(check) for check in checks if ground.left > 0]
            if late := len(checks) - len(results):
                proof.notes.append(f"{name}: {late} checks not run, the part's time was over.")
            counted = Counter(result.status for result in results)
            bad = [f"{kind} {registered.full_name}, {r.check}: {r.message}" for r in results if r.status == "failed"]
            passed, skipped = str(counted["passed"]), str(counted["skipped"])
            proof.rows.append((name, passed, skipped, str(len(bad))))
            proof.failed += bad
            if whys := {result.message for result in results if result.status == "skipped"}:
                proof.notes.append(f"{name}, not here: {'; '.join(sorted(whys))}.")
            ground.renewed(proof)
    return proof


def _serves(entry: Any, device: str) -> bool:
    """Whether the entry is for the device."""
    served = entry.serves if isinstance(entry.serves, tuple) else (entry.serves,)
    return any(not of.devices or device in of.devices for of in served)


def resumed(ground: Ground) -> Proof:
    """A run of four steps against one that stopped after two and resumed: every number of the adapter."""
    import numpy as np
    from finetooth import resume, run
    from safetensors.numpy import load_file

    def adapter(name: str) -> dict[str, Any]:
        return dict(load_file(ground.folder / name / "artifact/adapter_model.safetensors"))

    run(ground.recipe("whole"))
    run(ground.recipe("halves", max_steps=2))
    resume(ground.folder / "halves", "train.max_steps=4")
    whole, halves = adapter("whole"), adapter("halves")
    apart = sum(not np.array_equal(whole[name], halves[name]) for name in whole)
    far = max(float(np.abs(whole[name].astype("f8") - halves[name].astype("f8")).max()) for name in whole)
    proof = Proof(
        "A resumed run", [("tensors", "that differ", "largest difference"), (f"{len(whole)}", f"{apart}", f"{far:.1e}")]
    )
    if apart:
        proof.failed.append(f"{apart} of {len(whole)} tensors of the resumed run differ")
    return proof


def inputs(ground: Ground) -> Proof:
    """Steps of eight micro-batches whose inputs are copied on a stream of their own, and by the one that computes: each
    loss, and the time."""
    import torch
    from finetooth import session
    from finetooth_kernels.memory import placed
    from finetooth_torch.offload.transfers import Transfers

    proof = Proof("Copies of inputs", [("a stream of their own", "ms of a step", "steps", "losses that differ")])
    if not (card := torch.cuda.is_available()):
        proof.notes.append("There is no accelerator: nothing is copied.")
    together, losses = Transfers.together, list[list[float]]()
    for own in (False, True) * (2 if card else 1):
        Transfers.together = together if own else lambda to, tensors: [placed(x, to.device) for x in tensors]  # type: ignore[method-assign]
        began, seen = list[float](), list[float]()
        try:
            at_once = max(ground.sizes.length, ground.sizes.batch * ground.sizes.length // 8)
            recipe = ground.recipe("inputs", max_steps=2 + 4 * ground.sizes.rounds, micro_batch_tokens=at_once)
            made = session(recipe)
            for report in made.job.method.steps(made.engine):  # each waits for its loss
                began.append(time.perf_counter())
                seen.append(report.loss)
        finally:
            Transfers.together = together  # type: ignore[method-assign]
        losses.append(seen)
        apart = sum(one != first for one, first in zip(seen, losses[0], strict=True))
        took = sorted(end - start for start, end in pairwise(began[1:]))
        middle = f"{1e3 * took[len(took) // 2]:.1f}"
        proof.rows.append(("yes" if own else "no", middle, f"{len(took)}", f"{apart}"))
        if apart:
            proof.failed.append(f"{apart} losses differ")
        ground.keep(proof)
        del made
        gc.collect()
    return proof


def estimated(ground: Ground) -> Proof:
    """The plan's memory against the most that the device held in a run that saves itself."""
    import torch
    from finetooth import run, session

    head = ("adapter", "checkpointing", "rows", "plan, GiB", "truth, GiB", "plan / truth")
    proof = Proof("The estimate of memory", [head])
    if not torch.cuda.is_available():
        proof.notes.append("There is no accelerator: nothing was measured.")
        return proof
    for adapter in ("lora", "full"):
        for checkpointing in (True, False):
            for batch in ground.sizes.batches:
                if ground.left <= 0:
                    proof.notes.append(f"{adapter}, {batch} rows: not measured, the part's time was over.")
                    continue
                gc.collect()  # what the run before held counts for it alone
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
                train = {"batch_size": batch, "gradient_checkpointing": checkpointing, "max_steps": 2}
                named = (adapter, "yes" if checkpointing else "no", str(batch))
                recipe = ground.recipe(f"fit-{'-'.join(named)}", adapter, 0.0, **train)
                plan = 0
                try:
                    plan = session(recipe).job.plan.memory.total
                    run(recipe)
                except Exception as error:  # a plan that refuses is an answer too
                    said = f"{plan / 2**30:.2f}" if plan else "refused"
                    proof.rows.append((*named, said, "-", str(error).strip().partition("\n")[0][:80]))
                    proof.failed += [f"{' '.join(named)}: the run failed: {proof.rows[-1][-1]}"] if plan else []
                    continue
                finally:
                    shutil.rmtree(recipe["output"], ignore_errors=True)  # a full run saves many gigabytes
                truth = torch.cuda.max_memory_reserved()
                proof.rows.append((*named, f"{plan / 2**30:.2f}", f"{truth / 2**30:.2f}", f"{plan / truth:.2f}"))
                if plan < truth:
                    proof.failed.append(f"{' '.join(named)}: the plan says less than the device held")
                ground.keep(proof)
    return proof


def heads(ground: Ground) -> Proof:
    """The loss head next to cut-cross-entropy, Liger and whole logits."""
    import torch
    from finetooth_triton.gpu import available
    from kernelbench.heads import chunked, head_rows, in_triton, peers, whole_logits

    small = SMALL_HEAD, "cpu", torch.float32
    shape, device, dtype = (HEAD, "cuda", torch.bfloat16) if torch.cuda.is_available() else small
    rows, vocabulary, width = shape
    title = f"The loss head: {rows:,} rows of {width:,} numbers, {vocabulary:,} ids"
    kernels, theirs = available(device), peers()
    if device == "cpu":
        theirs = {name: who if isinstance(who, str) else "its kernels run on GPUs" for name, who in theirs.items()}
    ours = {
        "chunked": chunked,
        "finetooth": in_triton if kernels.available else kernels.reason,
        "torch, whole logits": whole_logits,
    }
    proof = Proof(title, [("what", "who", "ms", "MB", "loss")])
    for row in head_rows((shape,), {**ours, **theirs}, device, dtype, warm_up=2, timed=3):
        for who, about in row["contenders"].items():
            figures = (str(about.get(name, "")) for name in ("ms", "peak_mb", "loss"))
            proof.rows.append((row["what"], who, *figures))
            if "not measured" in about:
                proof.notes.append(f"{row['what']}, {who}: not measured, {about['not measured']}.")
        ground.keep(proof)
    return proof


def logits(ground: Ground) -> Proof:
    """Entropy and selective log-softmax of logits that are there."""
    import torch
    from kernelbench.given import given_rows

    from kernels import GIVEN, GIVEN_VOCABULARY

    small = ((1, 8), (1, 16), (1, 24), (2, 8)), 2_048, "cpu", torch.float32
    asked = (GIVEN, GIVEN_VOCABULARY, "cuda", torch.bfloat16) if torch.cuda.is_available() else small
    title = f"Entropy and log-probabilities of given logits, {asked[1]:,} ids"
    return table(title, ("batch", "length", "layout", "what"), given_rows(*asked, warm_up=5, timed=20), ground.keep)


def experts(ground: Ground) -> Proof:
    """Experts of mixtures, with LoRA and without."""
    import torch
    from kernelbench.experts import CPU_MIXTURES, CPU_RANKS, CPU_TOKENS, MIXTURES, RANKS, TOKENS, expert_rows

    small = CPU_MIXTURES, CPU_RANKS, CPU_TOKENS, "cpu", torch.float32
    asked = (MIXTURES, RANKS, TOKENS, "cuda", torch.bfloat16) if torch.cuda.is_available() else small
    rows: list[dict[str, Any]] = []

    def measured() -> Iterator[dict[str, Any]]:
        for row in expert_rows(*asked, warm_up=5, timed=20):
            if ground.left <= 0:
                return
            rows.append(row)
            yield row

    title = f"Experts of mixtures, {asked[2]:,} tokens"
    proof = table(title, ("mixture", "rank", "what"), measured(), ground.keep)
    base = {(row["mixture"], row["what"]): row["contenders"] for row in rows if not row["rank"]}
    for row in [row for row in rows if row["rank"] == asked[1][0]]:
        of = base[row["mixture"], row["what"]]
        times = [
            f"{who} {at['ms'] / of[who]['ms']:.2f}"
            for who, at in row["contenders"].items()
            if "ms" in at and "ms" in of[who]
        ]
        proof.notes.append(
            f"{row['mixture']}, {row['what']}, rank {row['rank']} / without LoRA, times: {', '.join(times)}."
        )
    return proof


def eight_bits(ground: Ground) -> Proof:
    """Linear layers in 8 bits, forward and backward under a frozen weight."""
    import torch
    from finetooth_kernels.fp8 import multiplies_fp8
    from kernelbench.eight import CPU_LAYERS, LAYERS, layer_rows

    proof = Proof("Linear layers in 8 bits", [("layer", "who", "ms", "MB", "result and gradient from float64")])
    card = torch.cuda.is_available()
    if card and not multiplies_fp8(torch.device("cuda")):
        proof.notes.append("This card has no products in 8 bits that finetooth uses.")
        return proof
    asked = (LAYERS, "cuda", torch.bfloat16) if card else (CPU_LAYERS, "cpu", torch.float32)
    for row, far in layer_rows(*asked, warm_up=3, timed=10):
        for who, of in row["contenders"].items():
            proof.rows.append((row["layer"], who, *(str(of.get(name, "-")) for name in ("ms", "peak_mb", "distance"))))
            proof.failed += [f"{who}: {of['not measured']}"] if "not measured" in of else []
        proof.failed += far
        ground.keep(proof)
    proof.notes.append("Distances are shares of the norm.")
    return proof


def about(sizes: Sizes) -> str:
    """The page's first sentence: the machine, the versions, the model."""
    import torch

    facts = machine()
    where = torch.cuda.get_device_name() if torch.cuda.is_available() else facts["processor"]
    said = [f"torch {torch.__version__}"]
    for name, distribution in (("transformers", "transformers"), ("TRL", "trl"), ("Liger", "liger-kernel")):
        with suppress(PackageNotFoundError):
            said.append(f"{name} {version(distribution)}")
    shape = ", ".join(f"{name} {value:,}" for name, value in sizes.shape.items())
    return (
        f"`make gpu` wrote this page on {where} with {', '.join(said)}. The model is a Llama with random weights "
        f"({shape}); rows have at most {sizes.length:,} tokens."
    )
