"""What the planner decides on 20 made-up machines; docs/benchmarks/plans.md is the table, which was reviewed.

Each machine is made of what torch says of its GPU, so hardware plugins, providers of kernels and attention answer as
they would there. `FT_WRITE_DOCS=docs/benchmarks/plans.md` writes the page instead of comparing it.
"""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from finetooth_advise.advice import advise
from finetooth_advise.made_up_machines import MAC_BACKEND, mac
from finetooth_core.cli.start_options import StartOptions
from finetooth_core.cli.state import State
from finetooth_core.planning.memory_check import check_memory
from finetooth_core.planning.plan import Job, decide
from finetooth_core.planning.ways import ways
from finetooth_hooks import MemoryEstimate
from finetooth_hooks.errors import PlanError
from finetooth_hooks.protocols import Device, HardwareFacts
from finetooth_toolbox.text import measures
from finetooth_torch.planning.offload import in_one_pool
from known_models import FRESH, MODELS, ROOMY, choice, llama
from machines import Machine, on

PAGE = Path(__file__).parents[2] / "docs" / "benchmarks" / "plans.md"
WIDTH = 120


MACHINES = {
    "H100": Machine("NVIDIA H100 80GB HBM3", (9, 0), 79.2, 512),
    "8 H100, flash-attn-3": Machine("NVIDIA H100 80GB HBM3", (9, 0), 79.2, 2048, 8, packages=("flash-attn-3",)),
    "B200": Machine("NVIDIA B200", (10, 0), 178.4, 2048),
    "A100 80 GB, flash-attn": Machine("NVIDIA A100-SXM4-80GB", (8, 0), 79.2, 512, packages=("flash-attn",)),
    "L4": Machine("NVIDIA L4", (8, 9), 22.0, 64),
    "RTX 5090": Machine("NVIDIA GeForce RTX 5090", (12, 0), 31.4),
    "RTX 4090": Machine("NVIDIA GeForce RTX 4090", (8, 9), 23.5),
    "RTX 3060": Machine("NVIDIA GeForce RTX 3060", (8, 6), 11.6, 32),
    "T4": Machine("Tesla T4", (7, 5), 14.6, 16),
    "GTX 1080 Ti": Machine("NVIDIA GeForce GTX 1080 Ti", (6, 1), 10.9, 32),
    "MI355X": Machine("AMD Instinct MI355X", "gfx950", 288, 2048, units=256),
    "MI300X": Machine("AMD Instinct MI300X", "gfx942", 192, 2048, units=304),
    "MI250, flash-attn": Machine("AMD Instinct MI250", "gfx90a", 64, 512, 8, units=104, packages=("flash-attn",)),
    "RX 7900 XTX": Machine("AMD Radeon RX 7900 XTX", "gfx1100", 24, 64, units=48),
    "RX 9070 XT": Machine("AMD Radeon RX 9070 XT", "gfx1201", 16, 64, units=32),
    "RX 9060 XT": Machine("AMD Radeon RX 9060 XT", "gfx1200", 16, 32, units=16),
    "Radeon 8060S": Machine("AMD Radeon 8060S Graphics", "gfx1151", 96, 32, units=20),
    "RX 5700 XT": Machine("AMD Radeon RX 5700 XT", "gfx1010", 8, 32, units=20),
    "Mac, 64 GB": Machine("", "", 64 * 0.931, backend=MAC_BACKEND),
    "CPU, 32 GB": Machine("", "", 32 * 0.931),
}

GEMMA = {
    **llama(3584, 14336, 42, 16, 8, 256000, tie_word_embeddings=True), "model_type": "gemma2", "head_dim": 256,
    "architectures": ["Gemma2ForCausalLM"], "sliding_window": 4096, "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0, "query_pre_attn_scalar": 256, "hidden_activation": "gelu_pytorch_tanh",
}  # fmt: skip
"""Gemma 2 9B: windows and capped scores, which the stream decoder computes on a GPU only by name."""
NARROW = {**GEMMA, "head_dim": 128, "num_attention_heads": 32}
"""The same with heads of 128, which torch's flex attention computes on every GPU."""
SIZES = {
    "0.5B": MODELS["0.5B"], "8B": MODELS["8B"], "32B": MODELS["32B"], "gemma": GEMMA, "narrow": NARROW,
    "dropping": {**NARROW, "attention_dropout": 0.1}, "unknown": {**NARROW, "auto_map": {"AutoModel": "x.Y"}},
}  # fmt: skip


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A context for a recipe over one of the models, of which nothing but the config is there."""
    folder = tmp_path_factory.mktemp("configs")
    state, known = State(StartOptions(blocked=("finetooth-bitsandbytes", "finetooth-liger"))), {}
    for name, config in SIZES.items():
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(json.dumps(config), encoding="utf-8")

    def context(model: str, machine: Machine, facts: HardwareFacts, **sections: Any) -> Any:
        backend = {} if machine.backend == "torch" else {"backend": machine.backend}
        made = state.sketch({"model": str(folder / model), **backend, **sections}, facts)
        key = model, machine.backend
        if key in known:  # parameters are counted once
            made.__dict__["base"] = known[key]
        known[key] = made.__dict__["base"] = replace(made.base, tokenizer=SimpleNamespace())
        made.__dict__["renderer_built"] = SimpleNamespace(part=SimpleNamespace(stop_ids=()))
        return made

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("finetooth_torch.planning.memory.host_overhead", lambda: FRESH)
        patch.setattr("finetooth_core.planning.memory_check.shutil", SimpleNamespace(disk_usage=lambda _: ROOMY))
        yield context


def lora(planned: Any, machine: Machine, facts: HardwareFacts, model: str = "8B", **train: Any) -> Job:
    """A low-rank adapter over rows of 4,096 tokens."""
    train = {"max_length": 4096, **train}
    return decide(planned(model, machine, facts, adapter={"name": "lora", "rank": 16}, train=train), {}, data=False)


def cell(job: Job, setting: str) -> str:
    """What was decided, without the distribution; a dash where the backend has no such setting."""
    decided = {decision.setting: str(decision.value) for decision in job.plan.decisions}
    return decided.get(setting, "-").rpartition(":")[2]


def computed(job: Job) -> str:
    """How attention and layers are computed."""
    attention = cell(job, "backend.attention")
    if attention != "-":
        return attention
    decoder = cell(job, "backend.decoder")
    return cell(job, "backend") if decoder == "-" else decoder


def plan_of(job: Job) -> list[str]:
    tokens = f"{int(cell(job, 'train.micro_batch_tokens')):,}"
    again = "yes" if cell(job, "train.gradient_checkpointing") == "True" else "no"
    return [tokens, again, f"{job.plan.memory.total / 1e9:.1f}"]


def in_eight_bits(planned: Any, machine: Machine, facts: HardwareFacts) -> str:
    try:
        return computed(lora(planned, machine, facts, precision="fp8"))
    except PlanError as error:
        assert error.exit_code == 2 and "not possible on" in error.problem
        return f"refused: {error.action.removeprefix('set train.precision to ')}"


def refusal(job: Job) -> list[str]:
    """What does not fit, and what would; nothing where it fits."""
    try:
        check_memory(job)
    except PlanError as error:
        short = error.problem.removeprefix("memory: the run ")
        return [short, error.action.partition("; or run it")[0].removeprefix("what would fit: ")]
    return []


def page(planned: Any) -> str:
    """docs/benchmarks/plans.md."""
    plans, sizes, refused = [], [], []
    for name, machine in MACHINES.items():
        with on(machine) as facts:
            eight, nine = lora(planned, machine, facts), lora(planned, machine, facts, "gemma")
            kernels = ", ".join(part.partition(" for ")[0] for part in cell(eight, "kernels").split("; "))
            decided = [cell(eight, "train.precision"), computed(eight), kernels, *plan_of(eight)]
            plans.append([name, *decided, computed(nine), in_eight_bits(planned, machine, facts)])
            open_ones = {"adapter": "auto", "quantization": "auto"}
            taken = [
                choice(advise(ways(planned(model, machine, facts, **open_ones), measure=False), rows=1))
                for model in ("0.5B", "8B", "32B")
            ]
            sizes.append([name, f"{facts.memory / 1e9:.0f} GB", *taken])
            if short := refusal(eight):
                refused.append([name, *short])
    plan_head = [
        "machine", "precision", "layers", "kernels", "tokens at once", "recomputed", "GB", "Gemma 2 9B", "fp8",
    ]  # fmt: skip
    size_head = ["machine", "memory", "0.5B", "8B", "32B"]
    return "\n".join(
        [
            *HEAD,
            *table(plan_head, plans),
            "",
            *TAKEN,
            *table(size_head, sizes),
            "",
            *REFUSED,
            *table(REFUSED_HEAD, refused),
            "",
        ]
    )


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return [f"| {' | '.join(line)} |".replace(" --- ", "---") for line in lines]


HEAD = [
    "# Plans of 20 machines", "",
    "What the planner decides on machines that are made up: `tests/runs/test_plans_of_machines.py` asks it as if torch",
    "saw their GPUs, and compares this page. Nothing here was run. Each plan was read, and those that were wrong were",
    "mended: see [what was wrong](#what-was-wrong). GB are 10^9 bytes.", "",
    "## LoRA of an 8B model over rows of 4,096 tokens", "",
    "`layers` names what computes them: `stream` is finetooth's decoder, the others are attention in the model's own",
    "code. Gemma 2 has windows and capped scores. A package is installed where the machine's name says so. The last",
    "column is the same run with `train.precision: fp8`.", "",
]  # fmt: skip
TAKEN = [
    "## What `adapter: auto, quantization: auto` trains", "",
    "`F` all weights, `L` LoRA, `8` and `4` over a base in so many bits, `R` with activations recomputed, `S` with",
    "frozen layers streamed from host memory or disk, `A` with activations there, `-` nothing. Rows of 512 tokens.", "",
]  # fmt: skip
REFUSED_HEAD = ["machine", "the run", "what would fit"]
REFUSED = [
    "## What is refused, and the nearest thing that works",
    "",
    "The run of the first table, in bf16 where there is bf16:",
    "",
]


@pytest.mark.slow
def test_the_page_is_what_the_planner_says(planned: Any) -> None:
    written, _, reviewed = PAGE.read_text(encoding="utf-8").partition("## What was wrong")
    found = page(planned)
    if os.environ.get("FT_WRITE_DOCS"):
        PAGE.write_text(f"{found}\n## What was wrong{reviewed}", encoding="utf-8")
    else:
        assert written.rstrip() == found.rstrip()


def test_no_gpu_is_planned_with_what_it_does_not_have(planned: Any) -> None:
    """By what makers and projects state, not by the page: no bf16 before Ampere and on RDNA 1, 8-bit products from Ada
    and on CDNA 4 and RDNA 4, flash attention only where its package is, no Triton on RDNA 1, and no plan of a stream
    decoder's kernels where it does not compute the layers."""
    for name, machine in MACHINES.items():
        with on(machine) as facts:
            jobs = [lora(planned, machine, facts), lora(planned, machine, facts, "gemma")]
            old = name in ("T4", "GTX 1080 Ti", "RX 5700 XT")
            assert ("bf16" in facts.precisions) is not old, name
            eights = ("H100", "8 H100, flash-attn-3", "B200", "L4", "RTX 5090", "RTX 4090", "MI355X")
            assert ("fp8" in facts.precisions) is (name in (*eights, "RX 9070 XT", "RX 9060 XT")), name
            for job in jobs:
                attention = cell(job, "backend.attention")
                assert ("flash" in attention) is (bool(machine.packages) and attention != "-"), name
                assert ("triton" in cell(job, "kernels")) is (bool(machine.gpu) and not old), name
                streams = cell(job, "backend.decoder") == "stream"
                assert ("stream_decoder" in cell(job, "kernels")) <= streams, name


@pytest.mark.parametrize("name", ["MI300X", "RX 7900 XTX", "H100"])
@pytest.mark.parametrize("model", ["8B", "gemma"])
def test_the_stream_decoder_is_to_be_had_by_name(planned: Any, name: str, model: str) -> None:
    """On AMD, and with windows and caps on every GPU, and the plan says that nobody has run or timed it."""
    kernels = {"segment_attention": "triton", **({"windowed_attention": "triton"} if model == "gemma" else {})}
    if name != "H100":
        kernels["stream_decoder"] = "native_layers"
    with on(MACHINES[name]) as facts:
        context = planned(model, MACHINES[name], facts, train={"max_length": 4096}, kernels=kernels)
        job = decide(context, {}, data=False)
    decided = {decision.setting: decision for decision in job.plan.decisions}
    assert cell(job, "backend.decoder") == "stream"
    assert all(str(decided[f"kernels.{name}"].value).endswith(provider) for name, provider in kernels.items())
    assert name == "H100" or "never run" in decided["kernels.stream_decoder"].reason
    assert ("no GPU has timed" in decided["backend.decoder"].reason) is (model == "gemma")


@pytest.mark.parametrize(
    ("name", "model", "taken"),
    [
        ("L4", "narrow", "flex"), ("RX 7900 XTX", "narrow", "flex"), ("L4", "gemma", "eager"),
        ("L4", "dropping", "eager"), ("L4", "unknown", "eager"), ("GTX 1080 Ti", "narrow", "eager"),
        ("MI300X", "narrow", "flex"), ("A100 80 GB, flash-attn", "narrow", "flash_attention_2"),
    ],
)  # fmt: skip
def test_scores_are_not_stored_where_they_do_not_fit(planned: Any, name: str, model: str, taken: str) -> None:
    """Scores of 32 heads over 8,192 positions are 32 x 8,192 x 8 bytes for each token: in fp32, rounded and capped."""
    with on(MACHINES[name]) as facts:
        job = lora(planned, MACHINES[name], facts, model, max_length=8192)
    assert cell(job, "backend.attention") == taken
    reason = next(one.reason for one in job.plan.decisions if one.setting == "backend.attention")
    assert reason.startswith("eager ") is (taken == "flex"), reason
    if cell(job, "train.gradient_checkpointing") == "True" and model != "gemma":  # those of one layer are there
        scores = job.plan.memory.parts["activations"] > 32 * 8192 * 8 * int(cell(job, "train.micro_batch_tokens"))
        assert scores is (taken == "eager")


def test_attention_that_the_recipe_names_stays_and_other_is_named(planned: Any) -> None:
    """Right behind recomputation, and what the line suggests is what the plan then takes."""
    machine, train = MACHINES["L4"], {"max_length": 4096}
    with on(machine) as facts:
        named = {
            attention: decide(
                planned("narrow", machine, facts, adapter="lora", train=train, backend={"name": "torch", **options}),
                {}, data=False,
            )
            for attention, options in (("eager", {"attention": "eager"}), ("flex", {"attention": "flex"}))
        }  # fmt: skip
        assert cell(named["eager"], "backend.attention") == "eager"
        _, advice = refusal(named["eager"])
    assert advice.startswith(f"backend.attention=flex ({measures.size(named['flex'].plan.memory.total)}); "), advice
    assert not refusal(named["flex"])


@pytest.mark.parametrize(("size", "usable"), [(16, 10.67), (36, 24), (48, 36), (128, 96)])
def test_torch_on_a_mac_budgets_one_memory(
    planned: Any, monkeypatch: pytest.MonkeyPatch, size: int, usable: float
) -> None:
    """What the process holds counts against the share that the GPU may take: with a byte less left than the run needs,
    the run is refused, though device and host by themselves would have room."""
    made = mac(size * 10**9)
    assert made.memory / 1e9 == pytest.approx(usable, abs=0.01)
    facts = replace(made, devices=(Device("mps:0", made.label, made.memory),))
    machine, process = MACHINES["CPU, 32 GB"], "finetooth_torch.planning.memory.host_overhead"

    def taken(holds: int) -> Job:
        monkeypatch.setattr(process, lambda: holds)
        return lora(planned, machine, facts, "0.5B", micro_batch_tokens=4096, gradient_checkpointing=True)

    alone = taken(0).plan.memory
    assert not alone.host and alone.parts["weights"] > 1e9
    room = made.memory - alone.total
    full, over = taken(room), taken(room + 1)
    assert full.plan.memory.total == made.memory and not refusal(full)
    assert refusal(over)[0].endswith(f"and {made.label} has {made.memory / 1e9:.2f} GB")


def test_a_mac_reads_the_base_before_the_rest_is_there() -> None:
    """The base of 40 is read next to weights of 40; activations, state and copies of 30 come later."""
    apart = MemoryEstimate(
        {"weights": 40, "optimizer": 12, "activations": 10, "overhead": 1},
        host={"overhead": 2, "snapshots": 8, "loading": 32},
    )
    whole = in_one_pool(apart)
    assert whole.parts == {
        "weights": 40, "optimizer": 12, "activations": 10, "overhead": 3, "snapshots": 8, "loading": 10,
    }  # fmt: skip
    assert whole.total == 40 + 40 + 3 and not whole.host
