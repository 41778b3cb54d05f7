"""`make gpu`: show on this machine's accelerator what a CPU cannot show, and write docs/benchmarks-gpu.md.

Eight parts: values of attention and kernels against float64, bits of a resumed run, the plan's estimate of memory
against the truth, speed and memory of supervised fine-tuning beside TRL's, with its defaults and tuned with Liger's
kernels, and on a card LoRA on a model of 8 billion parameters over rows of 4,096 tokens, and the loss head; then
functions of logits that are there, and experts of mixtures.
`--size tiny` takes a model that a CPU computes in minutes, and prints the page.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from textwrap import wrap
from typing import Any

from harness.machine import machine
from harness.process import run as contender
from harness.proofs import Proof, table

ROOT = Path(__file__).parents[2]
CONTENDERS = ROOT / "tests/bench/contenders"


@dataclass(frozen=True)
class Sizes:
    """What is measured.

    Attributes:
        shape: of a Llama with random weights, as its config names it.
        precision: weights on disk and computation.
        length: tokens of a row at most.
        rows: of a run that is timed.
        batch: rows of a step.
        rounds: runs of each contender, one after the other in turn.
        batches: of the estimates.
    """

    shape: dict[str, int]
    precision: str
    length: int
    rows: int
    batch: int
    rounds: int
    batches: tuple[int, ...]


def llama(hidden: int, ffn: int, layers: int, heads: int, kv_heads: int) -> dict[str, int]:
    """The words of a LlamaConfig."""
    return {
        "hidden_size": hidden, "intermediate_size": ffn, "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
    }  # fmt: skip


TINY = Sizes(llama(32, 64, 2, 4, 2), "fp32", 128, 8, 4, 1, (2, 4))
CARD = Sizes(llama(2048, 8192, 16, 32, 8), "bf16", 2048, 128, 8, 3, (4, 16, 64))
LARGE = Sizes(llama(4096, 14336, 32, 32, 8), "bf16", 4096, 40, 8, 1, (4, 8, 16))
TUNED = {"per_device_batch_size": 8, "dtype": "bfloat16", "bf16": True, "gradient_checkpointing": False}
"""TRL as its users set it for speed, where memory allows."""
HEAD = 16_384, 248_320, 2_048
"""Rows, ids and numbers of a row of the loss head that is measured."""
VOCABULARY = 49_152
"""Tokens of the tokenizer."""
PEAK = {"NVIDIA H100": 989e12, "NVIDIA H200": 989e12, "NVIDIA A100": 312e12}
"""Dense bf16 operations a second by the vendor's data sheets."""


@dataclass(frozen=True)
class Ground:
    """Where the parts work.

    Attributes:
        folder: scratch.
        model: a folder with the random model.
        rows: a file with conversations.
        sizes: what is measured.
    """

    folder: Path
    model: Path
    rows: Path
    sizes: Sizes

    def recipe(self, name: str, adapter: str = "lora", dropout: float = 0.1, **train: Any) -> dict[str, Any]:
        """A supervised run."""
        return {
            "model": str(self.model),
            "data": {"train": str(self.rows)},
            "method": "sft",
            "adapter": {"name": "lora", "rank": 16, "dropout": dropout} if adapter == "lora" else adapter,
            "optimizer": {"name": "adamw", "learning_rate": 2e-4},
            "train": {
                "batch_size": self.sizes.batch, "precision": self.sizes.precision, "max_length": self.sizes.length,
                "max_steps": 4, "epochs": 9, **train,
            },
            "checkpoint": {"every": 2, "keep_last": 9},
            "trackers": [],
            "output": str(self.folder / name),
        }  # fmt: skip


def prepared(folder: Path, sizes: Sizes, rows: int, names: Path | None = None, share: float = 0.25) -> Ground:
    """A random model with a real tokenizer, and conversations.

    Args:
        names: a folder with the tokenizer; None: that of the embedded model.
        share: of a row's greatest length, how many ids are drawn at random; their text makes a few tokens more.
    """
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    if names is None:
        from finetooth import session

        names = folder / "tokenizer"
        session({"model": "smollm2-135m"}, data=False).job.context.tokenizer.save(names)
    tokenizer = AutoTokenizer.from_pretrained(names)
    config = LlamaConfig(
        **sizes.shape, vocab_size=len(tokenizer), max_position_embeddings=8192, tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    torch.manual_seed(0)
    dtype = torch.float32 if sizes.precision == "fp32" else torch.bfloat16
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = LlamaForCausalLM(config).to(dtype)
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    del model
    generator = torch.Generator().manual_seed(1)
    lines = []
    for _ in range(rows):
        words = torch.randint(100, 20_000, (int(share * sizes.length),), generator=generator).tolist()
        sides = {
            side: [{"role": role, "content": tokenizer.decode(words[at::2])}]
            for at, (side, role) in enumerate((("prompt", "user"), ("completion", "assistant")))
        }
        lines.append(json.dumps(sides))
    (folder / "rows.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return Ground(folder, folder / "model", folder / "rows.jsonl", sizes)


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


def contenders(sizes: Sizes, whole: bool) -> dict[str, tuple[str, dict[str, Any]]]:
    """Who trains, by name: the script, and what it is told in addition.

    Args:
        whole: with those that are tuned for a card.
    """
    import torch
    from finetooth_kernels.fp8 import multiplies_fp8

    found: dict[str, tuple[str, dict[str, Any]]] = {"finetooth": ("ours.py", {}), "TRL": ("trl_peer.py", {})}
    if whole:
        liger = {**TUNED, "use_liger_kernel": True, "per_device_batch_size": min(2, sizes.batch)}
        if sizes is not LARGE:
            liger["per_device_batch_size"] = sizes.batch
        found["TRL, Liger, tuned"] = ("trl_peer.py", {"tuned": liger})
    if sizes is LARGE:
        del found["TRL"]
        fast = {"backend": {"deterministic": False}}
        found["finetooth, backend.deterministic: false"] = ("ours.py", fast)
        # as many tokens at once as two rows of TRL have
        both = "finetooth, backend.deterministic: false, train.micro_batch_tokens: 8192"
        found[both] = ("ours.py", {**fast, "micro_batch_tokens": 8192})
        if multiplies_fp8(torch.device("cuda")):
            found["finetooth, backend.deterministic: false, train.precision: fp8"] = (
                "ours.py",
                {**fast, "precision": "fp8"},
            )
    return found


def speed(ground: Ground) -> Proof:
    """Supervised fine-tuning beside TRL: same rows, same order, in turn, a process each."""
    return side_by_side(ground, "Supervised fine-tuning", ("lora", "full"))


def large(ground: Ground) -> Proof:
    """LoRA on 8 billion parameters, rows of 4,096 tokens."""
    import torch

    if not torch.cuda.is_available():
        return Proof("LoRA on 8 billion parameters", notes=["There is no accelerator: nothing was measured."])
    with tempfile.TemporaryDirectory(prefix="finetooth-gpu-large-") as folder:
        bigger = prepared(Path(folder), LARGE, LARGE.rows, ground.model, share=0.9)
        proof = side_by_side(bigger, "LoRA on 8 billion parameters, rows of up to 4,096 tokens", ("lora",))
    proof.notes.append("TRL, Liger, tuned computes 2 rows at once, finetooth the 16,384 tokens that its plan takes.")
    name = torch.cuda.get_device_name()
    peak = next((of for known, of in PEAK.items() if name.startswith(known)), None)
    frozen = 4 * sum(weights_of(LARGE.shape))
    if peak:
        for row in proof.rows[1:]:
            share = float(row[2].replace(",", "")) * frozen / peak
            proof.notes.append(f"{row[1]}: {share:.0%} of {peak / 1e12:.0f} TFLOP/s at 4 N operations a token.")
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


def weights_of(shape: dict[str, int]) -> tuple[int, int]:
    """Of all layers' matrices, and of the head."""
    hidden, heads = shape["hidden_size"], shape["num_attention_heads"]
    kv = hidden // heads * shape["num_key_value_heads"]
    layer = 2 * hidden * hidden + 2 * hidden * kv + 3 * hidden * shape["intermediate_size"]
    return shape["num_hidden_layers"] * layer, VOCABULARY * hidden


def side_by_side(ground: Ground, title: str, adapters: tuple[str, ...]) -> Proof:
    """Contenders in turn, a process each, over the same rows."""
    import finetooth
    import torch

    sys.path.insert(0, str(CONTENDERS))
    from ours import recipe

    sizes, environment = ground.sizes, {**os.environ, "HF_HUB_OFFLINE": "1"}
    spec: dict[str, Any] = {
        "model_folder": str(ground.model), "rows_file": str(ground.rows), "rows": sizes.rows, "batch_size": sizes.batch,
        "max_length": sizes.length, "length": sizes.length, "precision": sizes.precision,
        "adapter_folder": str(ground.folder / "adapter"),
    }  # fmt: skip
    told = {**spec, "adapter": "lora", "scratch": str(ground.folder)}
    finetooth.session(recipe(told), data=False).engine.export(ground.folder / "adapter")
    gc.collect()  # the model, before other processes come
    torch.cuda.empty_cache()
    proof = Proof(title, [("adapter", "who", "tokens/s", "device GiB", "first loss", "last loss")])
    for adapter in adapters:
        found: dict[str, list[dict[str, Any]]] = {}
        for at in range(sizes.rounds):
            for who, (script, more) in contenders(sizes, torch.cuda.is_available()).items():
                log = ground.folder / f"{who}-{adapter}-{at}.log"
                command = [sys.executable, str(CONTENDERS / script)]
                asked = {**spec, "adapter": adapter, **more}
                done = contender(command, asked, timeout=900, environment=environment, log=log)
                if done.failed:
                    proof.failed.append(f"{who}, {adapter}: {done.failed}")
                else:
                    found.setdefault(who, []).append(dict(done.result))
                    print(f"{who}, {adapter}: {steady(found[who][-1]):,.0f} tokens/s", flush=True)
        rates = {who: median(map(steady, results)) for who, results in found.items()}
        held = {who: max(result["device_memory_bytes"] for result in results) for who, results in found.items()}
        for who, results in found.items():
            losses = results[0]["losses"]
            about = f"{rates[who]:,.0f}", f"{held[who] / 2**30:.2f}", f"{losses[0]:.3f}", f"{losses[-1]:.3f}"
            proof.rows.append((adapter, who, *about))
        ours = [who for who in rates if who.startswith("finetooth")]
        for us, who in [(us, who) for us in ours for who in rates if who not in ours]:
            memory = f" at {held[us] / held[who]:.2f} times its memory" if held[who] else ""
            times = rates[us] / rates[who]
            proof.notes.append(f"{adapter}: {us} has {times:.2f} times the tokens per second of {who}{memory}.")
    return proof


def steady(result: dict[str, Any]) -> float:
    """Tokens per second without the first two steps, in which kernels are compiled and picked."""
    seconds = result["step_s"][2:] or result["step_s"]
    return float(result["tokens"] / len(result["step_s"]) * len(seconds) / sum(seconds))


PARTS: dict[str, Callable[[Ground], Proof]] = {
    "values": values, "resume": resumed, "estimate": estimated, "speed": speed, "large": large, "heads": heads,
    "logits": logits, "experts": experts,
}  # fmt: skip


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
            prove(Path(folder), sizes, parts, given.tokenizer, kept)
        proofs = [Proof(**json.loads(file.read_text())) for part in PARTS if (file := kept / f"{part}.json").exists()]
        text = page(json.loads((kept / "about.json").read_text(encoding="utf-8")), proofs)
    output = given.output or (ROOT / "docs/benchmarks-gpu.md" if card else None)
    if output is None:
        print(text)
    else:
        output.write_text(text, encoding="utf-8")
    return int(any(proof.failed for proof in proofs))


def prove(folder: Path, sizes: Sizes, parts: Sequence[str], tokenizer: Path | None, kept: Path) -> None:
    """Write what each part proves to `kept`."""
    ground = prepared(folder, sizes, max(sizes.rows, *sizes.batches), tokenizer)
    for part in parts:
        began = time.monotonic()
        try:
            proof = PARTS[part](ground)
        except Exception as error:
            traceback.print_exc()
            proof = Proof(part, failed=[f"{type(error).__name__}: {error}"])
        print(f"{part}: {time.monotonic() - began:.0f} s, {len(proof.failed)} failed", flush=True)
        (kept / f"{part}.json").write_text(json.dumps(asdict(proof), indent=1), encoding="utf-8")


if __name__ == "__main__":
    raise SystemExit(main())
