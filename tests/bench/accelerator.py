"""`make gpu`: show on this machine's accelerator what a CPU cannot show, and write docs/benchmarks-gpu.md.

Parts: values of attention and kernels against float64; bits of a resumed run; the plan's estimate of memory against
the truth; speed and memory of supervised fine-tuning, DPO, GRPO and sampling next to TRL, with its defaults and tuned
with Liger's kernels, transformers, and unsloth and vLLM where they are installed; LoRA on a model of 8 billion
parameters over rows of 4,096 tokens; sampling with graphs and without; the loss head; functions of logits that are
there; experts of mixtures.
`--size tiny` takes a model that a CPU computes in minutes, and prints the page.
"""

from __future__ import annotations

import argparse
import gc
import json
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from textwrap import wrap
from typing import Any

from harness.ground import CARD, LARGE, TINY, Ground, Sizes, prepared
from harness.machine import machine
from harness.proofs import Proof, table
from harness.replays import graphs
from harness.sides import large, preferences, rollouts, sampling, speed

ROOT = Path(__file__).parents[2]
HEAD = 16_384, 248_320, 2_048
"""Rows, ids and numbers of a row of the loss head that is measured."""
MINUTES = 20.0
"""What all parts together may take on a card."""


def values(ground: Ground) -> Proof:
    """Attention and kernels on the accelerator, against float64 as the conformance kit has it."""
    import torch
    from finetooth_core.plugins.manager import start
    from finetooth_kit import collect, run_check

    catalog, proof = (
        start(files=[]).catalog,
        Proof("Values against float64", [("entry", "passed", "not here", "failed")]),
    )
    for kind in ("attention", "kernel"):
        for registered in catalog.all(kind):
            if torch.cuda.is_available() and not _serves(registered.entry, "cuda"):
                continue
            if ground.left <= 0:
                proof.notes.append(f"{kind} `{registered.entry.name}`: not checked, the part's time was over.")
                continue
            results = [run_check(check) for check in collect(registered.entry, installed=True)]
            counted = Counter(result.status for result in results)
            bad = [f"{kind} {registered.full_name}, {r.check}: {r.message}" for r in results if r.status == "failed"]
            passed, skipped = str(counted["passed"]), str(counted["skipped"])
            proof.rows.append((f"{kind} `{registered.entry.name}`", passed, skipped, str(len(bad))))
            proof.failed += bad
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
                try:
                    plan = session(recipe).job.plan.memory.total
                except Exception as error:  # a plan that refuses is an answer too
                    proof.rows.append((*named, "refused", "-", str(error).splitlines()[0][:80]))
                    continue
                run(recipe)
                truth = torch.cuda.max_memory_reserved()
                proof.rows.append((*named, f"{plan / 2**30:.2f}", f"{truth / 2**30:.2f}", f"{plan / truth:.2f}"))
                if plan < truth:
                    proof.failed.append(f"{' '.join(named)}: the plan says less than the device held")
    return proof


def heads(ground: Ground) -> Proof:
    """The loss head beside cut-cross-entropy, Liger and whole logits."""
    import torch

    rows, vocabulary, width = HEAD
    title = f"The loss head: {rows:,} rows of {width:,} numbers, {vocabulary:,} ids"
    if not torch.cuda.is_available():
        return Proof(title, notes=["There is no accelerator: nothing was measured."])
    from kernelbench.heads import chunked, head_rows, in_triton, peers, whole_logits

    ours = {"chunked": chunked, "finetooth": in_triton, "torch, whole logits": whole_logits}
    proof = Proof(title, [("what", "who", "ms", "MB", "loss")])
    for row in head_rows((HEAD,), {**ours, **peers()}, "cuda", torch.bfloat16, warm_up=2, timed=3):
        for who, about in row["contenders"].items():
            figures = (str(about.get(name, "")) for name in ("ms", "peak_mb", "loss"))
            proof.rows.append((row["what"], who, *figures))
            if "not measured" in about:
                proof.notes.append(f"{row['what']}, {who}: {about['not measured']}")
    return proof


def logits(ground: Ground) -> Proof:
    """Entropy and selective log-softmax of logits that are there."""
    import torch
    from kernelbench.given import given_rows

    from kernels import GIVEN, GIVEN_VOCABULARY

    small = ((1, 8), (1, 16), (1, 24), (2, 8)), 2_048, "cpu", torch.float32
    asked = (GIVEN, GIVEN_VOCABULARY, "cuda", torch.bfloat16) if torch.cuda.is_available() else small
    title = f"Entropy and log-probabilities of given logits, {asked[1]:,} ids"
    return table(title, ("batch", "length", "layout", "what"), given_rows(*asked, warm_up=5, timed=20))


def experts(ground: Ground) -> Proof:
    """Experts of mixtures, with LoRA and without."""
    import torch
    from kernelbench.experts import CPU_MIXTURES, CPU_RANKS, CPU_TOKENS, MIXTURES, RANKS, TOKENS, expert_rows

    small = CPU_MIXTURES, CPU_RANKS, CPU_TOKENS, "cpu", torch.float32
    asked = (MIXTURES, RANKS, TOKENS, "cuda", torch.bfloat16) if torch.cuda.is_available() else small
    rows = expert_rows(*asked, warm_up=5, timed=20)
    proof = table(f"Experts of mixtures, {asked[2]:,} tokens", ("mixture", "rank", "what"), rows)
    base = {(row["mixture"], row["what"]): row["contenders"] for row in rows if not row["rank"]}
    for row in [row for row in rows if row["rank"] == asked[1][0]]:
        of = base[row["mixture"], row["what"]]
        times = [f"{who} {at['ms'] / of[who]['ms']:.2f}" for who, at in row["contenders"].items() if "ms" in at]
        proof.notes.append(
            f"{row['mixture']}, {row['what']}, rank {row['rank']} / without LoRA, times: {', '.join(times)}."
        )
    return proof


PARTS: dict[str, tuple[Callable[[Ground], Proof], int]] = {
    "values": (values, 120), "resume": (resumed, 45), "estimate": (estimated, 150), "speed": (speed, 210),
    "large": (large, 210), "dpo": (preferences, 100), "grpo": (rollouts, 130), "sampling": (sampling, 70),
    "graphs": (graphs, 60), "heads": (heads, 45), "logits": (logits, 30), "experts": (experts, 50),
}  # fmt: skip
"""What each part is, and its share of the time. What one leaves the next ones have."""


def about(sizes: Sizes) -> str:
    """The page's first sentence: the machine, the versions, the model."""
    import torch
    import transformers
    import trl

    facts = machine()
    where = facts["accelerator"] or facts["processor"]
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}, TRL {trl.__version__}"
    with suppress(PackageNotFoundError):
        versions += f", Liger {version('liger-kernel')}"
    shape = ", ".join(f"{name} {value:,}" for name, value in sizes.shape.items())
    return (
        f"`make gpu` wrote this page on {where} with {versions}. The model is a Llama with random weights ({shape}); "
        f"rows have at most {sizes.length:,} tokens."
    )


def page(said: str, proofs: list[Proof]) -> str:
    """The page that is written."""
    lines = (line for proof in proofs for line in proof.lines())
    return "\n".join(["# Proofs on an accelerator", "", *wrap(said, 118), "", *lines])


def main() -> int:
    """Prove, write, and say what failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=("tiny", "card", "large"), help="default: card on an accelerator, else tiny")
    parser.add_argument("--part", action="append", choices=tuple(PARTS), help="only this one; may be repeated")
    parser.add_argument("--rounds", type=int, help="runs of each contender")
    parser.add_argument("--minutes", type=float, help="of all parts; default: 20 on a card, else without an end")
    parser.add_argument("--tokenizer", type=Path, help="a folder with one; default: that of the embedded model")
    parser.add_argument("--proofs", type=Path, help="a folder for what parts prove: the page has all that lies there")
    parser.add_argument("--output", type=Path, help="where the page goes; default: docs/benchmarks-gpu.md on a card")
    given = parser.parse_args()
    import torch

    card = torch.cuda.is_available()
    sizes = {"tiny": TINY, "card": CARD, "large": LARGE}[given.size or ("card" if card else "tiny")]
    sizes = replace(sizes, rounds=given.rounds or sizes.rounds)
    with tempfile.TemporaryDirectory(prefix="finetooth-gpu-") as folder:
        kept: Path = given.proofs or Path(folder) / "proofs"
        kept.mkdir(parents=True, exist_ok=True)
        parts = given.part or list(PARTS)
        if given.part or not any(kept.iterdir()):
            (kept / "about.json").write_text(json.dumps(about(sizes)), encoding="utf-8")
            minutes = given.minutes or (MINUTES if card else float("inf"))
            prove(Path(folder), sizes, parts, given.tokenizer, kept, time.monotonic() + 60 * minutes)
        proofs = [Proof(**json.loads(file.read_text())) for part in PARTS if (file := kept / f"{part}.json").exists()]
        text = page(json.loads((kept / "about.json").read_text(encoding="utf-8")), proofs)
    output = given.output or (ROOT / "docs/benchmarks-gpu.md" if card else None)
    if output is None:
        print(text)
    else:
        output.write_text(text, encoding="utf-8")
    return int(any(proof.failed for proof in proofs))


def prove(folder: Path, sizes: Sizes, parts: Sequence[str], tokenizer: Path | None, kept: Path, end: float) -> None:
    """Write what each part proves to `kept`, until `end`, a time of `time.monotonic`."""
    ground = prepared(folder, sizes, max(sizes.rows, *sizes.batches), tokenizer)
    for at, part in enumerate(parts):
        began, (work, share) = time.monotonic(), PARTS[part]
        until = began + (end - began) * share / sum(PARTS[later][1] for later in parts[at:])
        try:
            proof = work(replace(ground, until=until))
        except Exception as error:
            traceback.print_exc()
            proof = Proof(part, failed=[f"{type(error).__name__}: {error}"])
        print(f"{part}: {time.monotonic() - began:.0f} s, {len(proof.failed)} failed", flush=True)
        (kept / f"{part}.json").write_text(json.dumps(asdict(proof), indent=1), encoding="utf-8")


if __name__ == "__main__":
    raise SystemExit(main())
