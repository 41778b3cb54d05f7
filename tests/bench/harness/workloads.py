"""What is measured: workloads, their sizes, and who takes part."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from harness.rollout_workloads import GRPO, LONG_ANSWERS, SLOW_REWARD
from harness.workload import (
    LONG,
    MACHINE,
    ONCE,
    SINGLE,
    TUNED,
    TUNED_FP32,
    TUNED_IN_FP32,
    Contender,
    Form,
    Workload,
    training,
)

LORA = Workload(
    "a",
    "lora",
    "(a) LoRA, supervised",
    "SmolLM2-135M, LoRA rank 16 and alpha 32 on every linear layer, GSM8K as conversations in the model's own chat "
    "markup, batch 8, at most 512 tokens, AdamW at a constant 2e-4. Same rows, same order, loss on the answer and "
    "its end of turn only, same initial adapter.",
    {
        "smoke": {"rows": 8, "batch_size": 4},
        "quick": {"rows": 32, "batch_size": 8},
        "full": {"rows": 128, "batch_size": 8},
    },
    (
        MACHINE,
        training("finetooth bf16", "ours.py", "bf16", adapter="lora"),
        training("TRL defaults", "trl_peer.py", "bf16", home="peers", adapter="lora"),
        training("TRL tuned", "trl_peer.py", "bf16", home="peers", adapter="lora", tuned=TUNED, rounds=ONCE),
        training("transformers Trainer", "trainer_peer.py", "fp32", home="peers", adapter="lora", rounds=ONCE),
        training("LLaMA-Factory", "llamafactory_peer.py", "bf16", home="llamafactory", adapter="lora", rounds=ONCE),
        training("finetooth fp32", "ours.py", "fp32", adapter="lora", rounds=ONCE),
        training("TRL fp32", "trl_peer.py", "fp32", home="peers", adapter="lora", rounds=ONCE),
    ),
)

FULL = Workload(
    "b",
    "full",
    "(b) Full fine-tune",
    "The rows of (a), every weight trains, AdamW at a constant 2e-5.",
    {
        "smoke": {"rows": 8, "batch_size": 4},
        "quick": {"rows": 24, "batch_size": 8},
        "full": {"rows": 128, "batch_size": 8},
    },
    (
        MACHINE,
        training("finetooth bf16", "ours.py", "bf16", adapter="full", rounds=ONCE),
        training("TRL defaults", "trl_peer.py", "bf16", home="peers", adapter="full", rounds=ONCE),
        training("TRL tuned", "trl_peer.py", "bf16", home="peers", adapter="full", tuned=TUNED, forms=("full",)),
        training("transformers Trainer", "trainer_peer.py", "fp32", home="peers", adapter="full", forms=("full",)),
        training("finetooth fp32", "ours.py", "fp32", adapter="full", rounds=SINGLE, forms=("smoke", "full")),
        training(
            "TRL fp32", "trl_peer.py", "fp32", home="peers", adapter="full", rounds=SINGLE, forms=("smoke", "full")
        ),
    ),
)

PRETRAIN = Workload(
    "c",
    "pretrain",
    "(c) Continued pre-training",
    "War and Peace in windows of 1,024 tokens, every weight trains, AdamW at a constant 2e-5. The peers read the "
    "windows as token ids, each with the one token more that its last target needs.",
    {
        "smoke": {"windows": 2, "batch_size": 2, "length": 256},
        "quick": {"windows": 12, "batch_size": 4, "length": 1024},
        "full": {"windows": 64, "batch_size": 8, "length": 1024},
    },
    (
        MACHINE,
        training("finetooth bf16", "ours.py", "bf16", adapter="full", method="pretrain", rounds=ONCE),
        training("TRL defaults", "trl_peer.py", "bf16", home="peers", adapter="full", method="pretrain", rounds=ONCE),
        training(
            "TRL tuned",
            "trl_peer.py",
            "bf16",
            home="peers",
            adapter="full",
            method="pretrain",
            tuned={**TUNED, "per_device_batch_size": 2},
            forms=("full",),
        ),
    ),
)

SCORING = Workload(
    "d",
    "scoring",
    "(d) Scoring",
    "Log-probabilities of the answers of GSM8K rows, in chat markup. The peer is a plain transformers forward, batches "
    "of 8 padded on the right, log-softmax of the logits. The vocabulary is enlarged fourfold where a row says so.",
    {"smoke": {"score_rows": 8}, "quick": {"score_rows": 96}, "full": {"score_rows": 256}},
    (
        MACHINE,
        Contender("finetooth bf16", "ours_score.py", {"precision": "bf16"}),
        Contender("transformers bf16", "transformers_score.py", {"precision": "bf16"}, "peers"),
        Contender("transformers default (fp32)", "transformers_score.py", {"precision": "default"}, "peers", ONCE),
        Contender("finetooth fp32", "ours_score.py", {"precision": "fp32"}, rounds=ONCE),
        Contender(
            "finetooth bf16, vocabulary x4", "ours_score.py", {"precision": "bf16", "enlarged": True}, rounds=SINGLE
        ),
        Contender(
            "transformers bf16, vocabulary x4",
            "transformers_score.py",
            {"precision": "bf16", "enlarged": True},
            "peers",
            SINGLE,
        ),
    ),
)

GENERATION = Workload(
    "e",
    "generation",
    "(e) Generation",
    "32 prompts of GSM8K in chat markup, 128 new tokens each, whatever they say (no stop token), greedy and sampled at "
    "temperature 1. The peer is transformers' `generate`, all prompts in one batch, padded on the left.",
    {
        "smoke": {"prompts": 4, "new_tokens": 8},
        "quick": {"prompts": 32, "new_tokens": 128},
        "full": {"prompts": 32, "new_tokens": 128},
    },
    (
        MACHINE,
        Contender("finetooth bf16", "ours_generate.py", {"precision": "bf16"}),
        Contender("transformers bf16", "transformers_generate.py", {"precision": "bf16"}, "peers"),
        Contender("finetooth fp32", "ours_generate.py", {"precision": "fp32"}, rounds=ONCE),
        Contender("transformers fp32", "transformers_generate.py", {"precision": "fp32"}, "peers", ONCE),
    ),
)

STARTUP = Workload(
    "f",
    "startup",
    "(f) Start-up",
    "Whole processes, taking turns, after a warm-up; the costliest imports, by `python -X importtime`; and what "
    "compiling the native kernels takes, once a machine.",
    {
        "smoke": {"rows": 8, "repeats": 2, "slow_repeats": 1},
        "quick": {"rows": 8, "repeats": 11, "slow_repeats": 2},
        "full": {"rows": 8, "repeats": 21, "slow_repeats": 5},
    },
    (
        Contender("commands", "startup.py", rounds=SINGLE),
        Contender("native kernels", "native_compile.py", rounds=ONCE),
    ),
)


def _preferences(key: str, name: str, title: str, about: str) -> Workload:
    """A method on pairs against TRL's trainer of it."""
    sizes = {form: {"preferred": 32, "batch_size": 8} for form in ("quick", "full")}
    machine = replace(MACHINE, forms=LONG)
    shared: dict[str, Any] = {"adapter": "lora", "method": name, "forms": LONG}
    ours, theirs = ("ours.py", "ours"), ("trl_preference_peer.py", "peers")
    return Workload(
        key,
        name,
        title,
        f"SmolLM2-135M, {about}, LoRA rank 16 and alpha 32 on every linear layer, 32 pairs of ranked answers of people "
        "(oasst_ranked) in the model's own chat markup, batch 8, at most 512 tokens, AdamW at a constant 2e-4. Same "
        "pairs, same order, same initial weights. Tokens are those of both answers, each with its prompt.",
        {"smoke": {"preferred": 4, "batch_size": 2}, **sizes},  # type: ignore[dict-item]
        (
            machine,
            *(
                training(f"{who} {text}", script, precision, home=home, **{"rounds": rounds, **shared})  # type: ignore[arg-type]
                for precision, rounds in (("bf16", {}), ("fp32", ONCE))
                for who, (script, home), text in (
                    ("finetooth", ours, precision),
                    ("TRL", theirs, "defaults" if precision == "bf16" else precision),
                )
            ),
        ),
    )


DPO = _preferences("i", "dpo", "(i) DPO", "dpo with the sigmoid loss at beta 0.1 against TRL's DPOTrainer")
REWARD = _preferences("j", "rm", "(j) Reward model", "a reward model against TRL's RewardTrainer")

NF4 = Workload(
    "q",
    "nf4",
    "(q) LoRA over NF4",
    "The rows of (a) and its adapter over a base of 4 bits (NF4, double quantisation, by bitsandbytes on both sides), "
    "in fp32. TRL has its defaults but for `bf16`; tuned it does not recompute.",
    {
        "smoke": {"rows": 8, "batch_size": 4},
        **{form: {"rows": 16, "batch_size": 8} for form in ("quick", "full")},
    },
    (
        training("finetooth fp32", "ours.py", "fp32", home="tested", adapter="lora", quantization="nf4", forms=LONG),
        training("TRL fp32", "trl_peer.py", "fp32", home="tested", adapter="lora", quantization="nf4", forms=LONG),
        training(
            TUNED_IN_FP32,
            "trl_peer.py",
            "fp32",
            home="tested",
            adapter="lora",
            quantization="nf4",
            tuned=TUNED_FP32,
            forms=LONG,
        ),
    ),
)


def _scaling() -> tuple[Contender, ...]:
    """One contender for each point of a curve."""
    rounds = {"quick": 1, "full": 2}
    points = []
    for length in (128, 256, 512, 1024, 2048, 4096):
        forms: tuple[Form, ...] = ("smoke", "quick", "full") if length in (128, 512, 2048) else ("full",)
        options = {"precision": "bf16", "adapter": "lora", "method": "pretrain", "length": length, "curve": "length"}
        batch = max(1, 4096 // length)
        options |= {"x": length, "batch_size": batch, "windows": 2 * batch}
        points.append(Contender(f"length {length}", "ours.py", options, rounds=rounds, forms=forms))
    for batch in (1, 2, 4, 8, 16, 32, 64):
        forms = ("quick", "full") if batch in (1, 8, 32) else ("full",)
        options = {"precision": "bf16", "adapter": "lora", "curve": "batch", "x": batch, "batch_size": batch}
        options["rows"] = max(16, 2 * batch)
        points.append(Contender(f"batch {batch}", "ours.py", options, rounds=rounds, forms=forms))
    for rows in (1_000, 10_000, 100_000, 1_000_000):
        forms = ("smoke", "quick", "full") if rows == 1_000 else ("quick", "full") if rows == 10_000 else ("full",)
        options = {"curve": "rows", "x": rows, "count": rows}
        points.append(Contender(f"{rows:,} rows", "ours_prepare.py", options, rounds=SINGLE, forms=forms))
        for peer, mask in (("datasets.map", False), ("datasets.map with mask", True)):
            if rows in (10_000, 100_000) or (mask and rows == 1_000_000):
                told = {**options, "mask": mask}
                points.append(Contender(f"{rows:,} rows, {peer}", "datasets_prepare.py", told, "peers", SINGLE, forms))
    return tuple(points)


SCALING = Workload(
    "g",
    "scaling",
    "(g) Scaling",
    "LoRA in bf16: windows of War and Peace of every length with about 4,096 tokens a step; GSM8K rows with every "
    "batch size; and GSM8K conversations, each made unlike the others, read and tokenised (no weights), against "
    "`datasets.map` with `apply_chat_template` in as many processes as there are cores: once for the prompt and once "
    "for the whole, or once with `return_assistant_tokens_mask`. Each twice: with nothing cached, and once more.",
    {"smoke": {}, "quick": {}, "full": {}},
    _scaling(),
)

OVERHEAD = Workload(
    "h",
    "overhead",
    "Hooks and tracking",
    "A run of (a) with the trackers console, jsonl and tensorboard and two observing plugins, and one with none. What "
    "the run loop does between two steps (measuring the step, the method's state, trackers, plugins) is timed inside "
    "the run.",
    {
        "smoke": {"rows": 8, "batch_size": 4},
        "quick": {"rows": 64, "batch_size": 8},
        "full": {"rows": 128, "batch_size": 8},
    },
    (
        Contender("three trackers, two plugins", "ours_overhead.py", {"observed": True}, rounds=ONCE, forms=LONG),
        Contender("none", "ours_overhead.py", {"observed": False}, rounds=ONCE, forms=LONG),
    ),
)

SAVING = Workload(
    "s",
    "saving",
    "Saving",
    "A run of (a) with a checkpoint every 20 steps, written in the background, and one without: the time is from the "
    "end of the first step until the last state is kept. Below it, the state of a full fine-tune of the same model "
    "after one step, saved and loaded by turns with the same tensors through torch: `engine state` is safetensors "
    "with a SHA-256 of each file, verified when it is loaded; `checkpoint` is that in a folder with a manifest, "
    "flushed to the disk, and to be compared with `torch.save, fsync`. What is read lies in the page cache.",
    {
        "smoke": {"rows": 8, "batch_size": 4, "every": 1, "repeats": 1},
        "quick": {"rows": 168, "batch_size": 4, "every": 20, "repeats": 3},
        "full": {"rows": 248, "batch_size": 4, "every": 20, "repeats": 3},
    },
    (
        Contender("every 20 steps", "ours_saving.py", {"saves": True}, rounds=ONCE, forms=LONG),
        Contender("none", "ours_saving.py", {"saves": False}, rounds=ONCE, forms=LONG),
        Contender("states", "ours_state_io.py", {"rows": 8}, rounds=ONCE, forms=LONG),
    ),
)


def _profiles() -> tuple[Contender, ...]:
    """One recording for each workload whose speed has a goal, by the workload's name."""
    recorded: dict[str, dict[str, Any]] = {
        "lora": {"records": "training", "adapter": "lora", "rows": 24, "batch_size": 8},
        "pretrain": {
            "records": "training",
            "adapter": "full",
            "method": "pretrain",
            "windows": 6,
            "batch_size": 2,
            "length": 1024,
        },
        "scoring": {"records": "scoring", "score_rows": 32},
        "generation": {"records": "generation", "prompts": 32, "new_tokens": 16},
    }
    return tuple(
        Contender(name, "ours_profile.py", {"precision": "bf16", **options}, rounds=SINGLE)
        for name, options in recorded.items()
    )


PROFILE = Workload(
    "p",
    "profile",
    "Where the time goes",
    "Warm work of (a), (c), (d) and (e) in bf16, recorded.",
    {"smoke": {}, "quick": {}, "full": {}},
    _profiles(),
)


def _tuning() -> tuple[Contender, ...]:
    """TRL's settings, one by one."""
    variants: dict[str, dict[str, Any]] = {
        "no recomputation": {"dtype": "float32", "per_device_batch_size": 8},
        "and bf16 weights": {"per_device_batch_size": 8},
        "and device batch 4": {},
        "and device batch 2": {"per_device_batch_size": 2},
        "device batch 4, no autocast": {"bf16": False},
    }
    forms: tuple[Form, ...] = ("smoke", "full")
    found = [training("TRL defaults", "trl_peer.py", "bf16", home="peers", adapter="lora", forms=forms)]
    for name, changed in variants.items():
        options = {"precision": "bf16", "adapter": "lora", "tuned": {**TUNED, **changed}}
        found.append(Contender(f"TRL, {name}", "trl_peer.py", options, "peers", forms=forms))
    return tuple(found)


TUNING = Workload(
    "t",
    "tuning",
    "How TRL was tuned",
    "Settings of TRL on the rows of (a), one after the other; the fastest is `TRL tuned` above.",
    {form: {"rows": 16, "batch_size": 8} for form in ("smoke", "quick", "full")},
    _tuning(),
)

WORKLOADS: tuple[Workload, ...] = (
    LORA,
    FULL,
    PRETRAIN,
    SCORING,
    GENERATION,
    STARTUP,
    SCALING,
    OVERHEAD,
    SAVING,
    DPO,
    REWARD,
    GRPO,
    LONG_ANSWERS,
    SLOW_REWARD,
    NF4,
    PROFILE,
    TUNING,
)


def contenders(workloads: tuple[Workload, ...], names: str) -> tuple[str, ...]:
    """Contenders by name, parted by semicolons; all of the workloads for an empty text.

    Raises:
        ValueError: none of the workloads has one of that name.
    """
    known = tuple(dict.fromkeys(contender.name for workload in workloads for contender in workload.contenders))
    wanted = tuple(name.strip() for name in names.split(";") if name.strip())
    for name in wanted:
        if name not in known:
            raise ValueError(f"no contender {name!r}; there are {'; '.join(known)}")
    return wanted or known


def pick(names: str) -> tuple[Workload, ...]:
    """Workloads by key or name, `a,d` or `lora`; all of them for an empty text.

    Raises:
        ValueError: no such workload.
    """
    if not names:
        return WORKLOADS
    known = {w.key: w for w in WORKLOADS} | {w.name: w for w in WORKLOADS}
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    for name in wanted:
        if name not in known:
            keys = ", ".join(f"{w.key} ({w.name})" for w in WORKLOADS)
            raise ValueError(f"no workload {name!r}; there are {keys}")
    return tuple(w for w in WORKLOADS if w in [known[name] for name in wanted])
