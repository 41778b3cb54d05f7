"""The same recipe with the MLX backend and with torch's: one seed begins with one adapter, so whole runs compare."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from finetooth_hooks import FinetoothError, PlanError

pytest.importorskip("mlx_lm", reason="mlx-lm is not installed")
pytest.importorskip("finetooth_torch", reason="torch is not installed")

import finetooth
from safetensors.numpy import load_file

SLOW = pytest.mark.slow
PAIRS = [
    {"prompt": f"{i}+1?", "chosen": f"it is {i + 1}", "rejected": "no" if i % 2 else f"{i}, or more"} for i in range(16)
]
ROWS = {
    "sft": [{"prompt": row["prompt"], "completion": row["chosen"]} for row in PAIRS],
    "dpo": PAIRS,
    "aot": PAIRS,
    "kto": [
        {"prompt": row["prompt"], "completion": row[side], "label": side == "chosen"}
        for row in PAIRS
        for side in ("chosen", "rejected")
    ],
}
WITHOUT_A_REFERENCE = ("orpo", "simpo", "cpo")
ROWS |= dict.fromkeys(("rm", *WITHOUT_A_REFERENCE), PAIRS)
ROWS["grpo"] = [{"prompt": row["prompt"], "answer": row["chosen"]} for row in PAIRS]
ROWS["prm"] = [
    {"prompt": f"{i}+1?", "completions": [f"{i} and one", f"it is {i + j}"], "labels": [True, j == 1]}
    for i in range(8)
    for j in (1, 2)
]
ROWS["pretrain"] = [{"text": f"{i} and {i + 1}: " + "so on, " * (i % 4)} for i in range(40)]
METHODS: dict[str, Any] = {
    "pretrain": "pretrain",
    "grpo": {
        "name": "grpo",
        "num_generations": 4,
        "max_completion_length": 8,
        "rewards": ["letters"],
        "beta": 0.04,
    },
    "rm": "rm",
    "prm": "prm",
    "sft": "sft",
    "dpo": "dpo",
    "aot": {"name": "dpo", "loss": "aot"},
    "kto": "kto",
    **{name: name for name in WITHOUT_A_REFERENCE},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, write: Callable[..., Path]) -> Path:
    folder = tmp_path_factory.mktemp("both")
    (folder / "m").mkdir()
    write(folder / "m")
    for name, rows in ROWS.items():
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return folder


def run(folder: Path, name: str, backend: str, **changes: Any) -> Path:
    """A run of 8 rows a step, cut into micro-batches of 64 tokens; the folder that it wrote."""
    output = folder / f"{name}-{backend}-{len(list(folder.iterdir()))}"
    recipe = {
        "model": str(folder / "m"), "data": {"train": str(folder / f"{name}.jsonl"), "renderer": "chatml"},
        "method": METHODS[name], "backend": backend, "adapter": {"name": "lora", "rank": 4},
        "optimizer": {"name": "adamw", "learning_rate": 1e-3, "weight_decay": 0.1}, "schedule": "constant",
        "train": {"epochs": 20, "max_steps": 20, "batch_size": 8, "max_length": 96, "precision": "fp32",
                  "micro_batch_tokens": 128},
        "trackers": ["jsonl"], "evaluate": {"evaluators": []}, "output": str(output), **changes,
    }  # fmt: skip
    outcome = finetooth.run(recipe)
    assert outcome.status == "done"
    return output


def metrics(output: Path) -> list[tuple[float, float]]:
    lines = map(json.loads, (output / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return [(line["loss"], line["grad_norm"]) for line in lines if line.get("grad_norm") is not None]


@pytest.mark.parametrize(
    "name",
    [
        "dpo",
        *(pytest.param(name, marks=SLOW) for name in METHODS if name not in ("dpo", "grpo")),
    ],
)
def test_the_first_gradient_is_torchs(folder: Path, name: str) -> None:
    """One step of plain descent at rate 1: what moved is the gradient. B begins at zero, so all of it is B's."""
    once = {"optimizer": {"name": "sgd", "learning_rate": 1.0}}
    train = {"max_steps": 1, "batch_size": 8, "max_length": 96, "precision": "fp32", "micro_batch_tokens": 128,
             "max_grad_norm": 0.0}  # fmt: skip
    mine, torchs = (
        load_file(run(folder, name, backend, train=train, **once) / "artifact" / "adapter_model.safetensors")
        for backend in ("mlx", "torch")
    )
    assert mine.keys() == torchs.keys()
    moved = [key for key in mine if "lora_B" in key or "score" in key]
    assert moved and all(np.abs(torchs[key]).max() > 0 for key in moved)
    for key, wanted in torchs.items():
        if key in moved:
            assert np.abs(mine[key] - wanted).max() < 1e-5 * np.abs(wanted).max(), key
        else:
            assert np.array_equal(mine[key], wanted), f"{key} began otherwise"


@pytest.mark.parametrize(
    "name", ["sft", "rm", *(pytest.param(name, marks=SLOW) for name in ("dpo", "aot", "kto", "prm", "pretrain"))]
)
def test_twenty_steps_are_torchs(folder: Path, name: str) -> None:
    mine, torchs = (metrics(run(folder, name, backend)) for backend in ("mlx", "torch"))
    assert len(mine) == len(torchs) == 20
    assert [loss for loss, _ in mine] == pytest.approx([loss for loss, _ in torchs], rel=1e-3)
    assert [norm for _, norm in mine] == pytest.approx([norm for _, norm in torchs], rel=1e-2)


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("dpo", {"method": {"name": "dpo", "reference": {"policy": "frozen-copy", "sync_every": 3, "mix": 0.6}}}),
        pytest.param("dpo", {"adapter": "full"}, marks=SLOW),
        pytest.param("dpo", {"method": {"name": "dpo", "reference": "OTHER"}}, marks=SLOW),
        pytest.param("sft", {"train": {"embedding_noise": 5.0}}, marks=SLOW),
    ],
)
def test_roles_and_noise_are_torchs(folder: Path, name: str, given: dict[str, Any], write: Callable[..., Path]) -> None:
    """A copy of the policy that follows it, one of whole weights, another model as the reference; noise by datum."""
    train = {"max_steps": 6, "batch_size": 8, "max_length": 96, "precision": "fp32", **given.get("train", {})}
    if not (folder / "other").exists():
        (folder / "other").mkdir()
        write(folder / "other", seed=6)
    given = json.loads(json.dumps(given).replace("OTHER", str(folder / "other")))
    mine, torchs = (metrics(run(folder, name, backend, **{**given, "train": train})) for backend in ("mlx", "torch"))
    plain = metrics(run(folder, name, "mlx", train={**train, "embedding_noise": 0.0}))
    assert [loss for loss, _ in mine] == pytest.approx([loss for loss, _ in torchs], rel=1e-3)
    assert [loss for loss, _ in mine][4:] != pytest.approx([loss for loss, _ in plain][4:], rel=1e-3)


LETTERS = """
from finetooth_hooks import NoOptions, Reward, hookimpl

@hookimpl
def ft_rewards():
    yield Reward(name="letters", build=f"{__name__}:build")

def build(options: NoOptions, context):
    return lambda prompts, completions, columns: [sum(map(ord, str(c))) % 97 / 97 for c in completions]
"""


@pytest.mark.slow
@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_rollouts_are_torchs(folder: Path, penalty: float) -> None:
    """Answers are drawn alike, special tokens in their text included; a small rate, so that no rounding flips one. With
    a repetition penalty the loss looks at the policy that drew."""
    (folder / "letters.py").write_text(LETTERS, encoding="utf-8")
    train = {"max_steps": 20, "epochs": 20, "batch_size": 4, "max_length": 96, "precision": "fp32"}
    given: dict[str, Any] = {"train": train, "plugins": [str(folder / "letters.py")]}
    given["optimizer"] = {"name": "sgd", "learning_rate": 0.02}
    given["method"] = {**METHODS["grpo"], "repetition_penalty": penalty}
    mine, torchs = (metrics(run(folder, "grpo", backend, **given)) for backend in ("mlx", "torch"))
    assert [norm for _, norm in mine] == pytest.approx([norm for _, norm in torchs], rel=1e-3)


ANSWERING: dict[str, dict[str, Any]] = {
    "distill": {"teacher": "OTHER"},
    "ebft": {"reference_column": "completion", "num_generations": 3, "ce_coef": 0.1},
    "gkd": {"teacher": "OTHER"},
    "opd": {"teacher": "OTHER", "keep_rollouts": False},
    "gkd_seq_kd": {"name": "gkd", "teacher": "OTHER", "seq_kd": True},
    "sdft": {"demonstration": "completion", "num_generations": 2},
    **{name: {"rewards": ["letters"], "num_generations": 2} for name in ("best_of_n", "ppo", "rloo")},
    "reinforce_plus_plus": {"rewards": ["letters"], "num_generations": 2},
    "self_rewarding": {"num_generations": 2, "rubric": "{prompt} {answer}?"},
    "iterative_dpo": {
        "name": "self_rewarding", "rewards": [{"name": "exact_match", "column": "completion"}], "keep_equal": True,
        "num_generations": 2,
    },
    "spin": {},
    "uld": {"teacher": "OTHER"},
}  # fmt: skip
"""Methods that learn from a teacher, from features or from their own answers, with their options; iterative DPO is
`self_rewarding` with another judge."""
PROMPTED = (
    "best_of_n", "ebft", "gkd_seq_kd", "iterative_dpo", "opd", "ppo", "reinforce_plus_plus", "rloo", "sdft",
    "self_rewarding",
)  # fmt: skip
"""Of them those that read prompts alone."""


def answering(folder: Path, name: str, backend: str, write: Callable[..., Path]) -> Path:
    """A run of six small steps; answers are drawn alike as long as no rounding flips one."""
    if not (folder / "other").exists():
        (folder / "other").mkdir()
        write(folder / "other", seed=6)
    method = json.loads(json.dumps(ANSWERING.get(name, {})).replace("OTHER", str(folder / "other")))
    if name == "gkd_seq_kd":  # opened by itself, in its own template, for the positions that recipes have by default
        (folder / "wide").mkdir(exist_ok=True)
        (folder / "wide/chat_template.jinja").write_text("{{ messages[0].content }}: ", encoding="utf-8")
        method["teacher"] = str(write(folder / "wide", seed=6, max_position_embeddings=1024))
    if name == "uld":  # opened by itself, which knows how its rows are written
        method["teacher"] = str(run(folder, "sft", "torch"))
    if name not in ("distill", "uld", "ebft_strided"):
        method["max_completion_length"] = 8
    data = {"train": str(folder / "sft.jsonl"), "renderer": "chatml"}
    (folder / "letters.py").write_text(LETTERS, encoding="utf-8")
    if name in PROMPTED:
        data["format"] = "task"
    train = {"max_steps": 6, "epochs": 20, "batch_size": 4, "max_length": 96, "precision": "fp32"}
    plain = {"name": "sgd", "learning_rate": 0.02}
    given = {"data": data, "train": train, "optimizer": plain, "plugins": [str(folder / "letters.py")]}
    return run(folder, "sft", backend, method={"name": name, **method}, **given)


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n == "uld" else SLOW) for n in ANSWERING])
def test_teachers_and_self_play_are_torchs(folder: Path, write: Callable[..., Path], name: str) -> None:
    mine, torchs = (metrics(answering(folder, name, backend, write)) for backend in ("mlx", "torch"))
    assert len(mine) == 6 and any(loss for loss, _ in mine)
    # advantages of a batch that sum to 0 leave the rounding of their loss
    assert [loss for loss, _ in mine] == pytest.approx([loss for loss, _ in torchs], rel=1e-3, abs=1e-6)
    assert [norm for _, norm in mine] == pytest.approx([norm for _, norm in torchs], rel=1e-2)


def test_every_method_has_a_case() -> None:
    """But for those whose entry says that MLX cannot."""
    from finetooth_core.plugins import manager

    catalog = manager.start().catalog
    able: Any = catalog.get("backend", "mlx", setting="backend").entry
    methods = [registered.entry for registered in catalog.all("method")]
    picks = [*METHODS.values(), *({"name": name, **options} for name, options in ANSWERING.items())]
    tried = {pick if isinstance(pick, str) else pick["name"] for pick in picks}
    assert {entry.name for entry in methods if entry.needs <= able.capabilities} <= tried
    assert {entry.name for entry in methods if not entry.needs <= able.capabilities} == {"ebft_strided", "trl"}


@pytest.mark.slow
def test_a_teacher_of_torchs_is_merged_first(folder: Path) -> None:
    """A run is loaded by what it was made with; the folder that it is merged into is read by both."""
    from finetooth_core.cli import main

    taught = run(folder, "sft", "torch", train={"max_steps": 2, "batch_size": 4, "max_length": 96, "precision": "fp32"})
    plain = {"name": "sgd", "learning_rate": 0.02}
    train = {"max_steps": 2, "epochs": 20, "batch_size": 4, "max_length": 96, "precision": "fp32"}
    data = {"train": str(folder / "sft.jsonl"), "renderer": "chatml"}
    given: dict[str, Any] = {"data": data, "train": train, "optimizer": plain}
    with pytest.raises(FinetoothError, match="ft merge RUN"):
        run(folder, "sft", "mlx", method={"name": "distill", "teacher": str(taught)}, **given)
    assert main(["merge", str(taught)]) == 0
    method = {"name": "distill", "teacher": str(taught / "merged")}
    mine, torchs = (metrics(run(folder, "sft", backend, method=method, **given)) for backend in ("mlx", "torch"))
    assert [loss for loss, _ in mine] == pytest.approx([loss for loss, _ in torchs], rel=1e-3)


def test_blocks_of_one_document_are_refused_by_the_plan(folder: Path, write: Callable[..., Path]) -> None:
    with pytest.raises(PlanError, match="ebft_strided needs trees, which backend mlx cannot do"):
        answering(folder, "ebft_strided", "mlx", write)


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["sgd", "lion", "adafactor", "muon"])
def test_other_optimizers_are_torchs(folder: Path, optimizer: str) -> None:
    """Muon's products are of bf16 in torch, and of fp32 here."""
    given = {"optimizer": {"name": optimizer, "learning_rate": 1e-4, "weight_decay": 0.1}}
    mine, torchs = (metrics(run(folder, "sft", backend, **given)) for backend in ("mlx", "torch"))
    assert [loss for loss, _ in mine] == pytest.approx([loss for loss, _ in torchs], rel=1e-3)


@pytest.mark.parametrize(
    "adapter",
    [
        {"name": "lora", "rank": 4, "dora": True, "dropout": 0.1},
        pytest.param({"name": "lora", "rank": 4, "dropout": 0.2}, marks=SLOW),
        pytest.param({"name": "freeze", "layers": 1, "norm": True}, marks=SLOW),
    ],
    ids=["dora", "dropout", "freeze"],
)
def test_other_adapters_are_torchs(folder: Path, adapter: dict[str, Any]) -> None:
    """Losses over steps, and what either engine reads of the other's artifact."""
    train = {"max_steps": 6, "batch_size": 8, "max_length": 96, "precision": "fp32"}
    plain = {"name": "sgd", "learning_rate": 0.1}  # Adam makes whole steps of gradients that are nothing but rounding
    given = {"adapter": adapter, "train": train, "optimizer": plain}
    mine, torchs = (run(folder, "sft", backend, **given) for backend in ("mlx", "torch"))
    assert [loss for loss, _ in metrics(mine)] == pytest.approx([loss for loss, _ in metrics(torchs)], rel=1e-3)
    name = "adapter_model.safetensors" if adapter["name"] == "lora" else "model.safetensors"
    ours, theirs = (load_file(output / "artifact" / name) for output in (mine, torchs))
    assert {n: a.shape for n, a in ours.items()} == {n: a.shape for n, a in theirs.items()}
    for key, wanted in theirs.items():
        assert np.abs(ours[key] - wanted).max() < 1e-3 * np.abs(wanted).max() + 1e-6, key


def test_a_head_that_shares_the_embeddings_weight_carries_an_addition(
    folder: Path, write: Callable[..., Path], engine_of: Callable[..., Any]
) -> None:
    """As the Tinker client asks by default. Folded into its base it has a weight of its own, as transformers reads."""
    import mlx.core as mx
    import torch
    import transformers
    from finetooth_kit import FakeContext
    from finetooth_mlx.adapters import LoraAdapter, LoraOptions
    from finetooth_mlx.folding import write_model
    from finetooth_mlx.loader import MlxOptions, build

    (folder / "tied").mkdir()
    write(folder / "tied", tied=True)
    options = {"rank": 4, "targets": ["q_proj", "lm_head"]}
    given = {
        "model": str(folder / "tied"), "adapter": {"name": "lora", **options},
        "train": {"max_steps": 6, "batch_size": 8, "max_length": 96, "precision": "fp32"},
        "optimizer": {"name": "sgd", "learning_rate": 0.1},
    }  # fmt: skip
    mine, torchs = (run(folder, "sft", backend, **given) for backend in ("mlx", "torch"))
    assert [loss for loss, _ in metrics(mine)] == pytest.approx([loss for loss, _ in metrics(torchs)], rel=1e-3)
    ours, theirs = (load_file(of / "artifact" / "adapter_model.safetensors") for of in (mine, torchs))
    assert {name: array.shape for name, array in ours.items()} == {name: array.shape for name, array in theirs.items()}
    adapter, ids = LoraAdapter(LoraOptions(**options)), np.arange(3, 40)
    engine = engine_of(folder / "tied", adapter=adapter)
    engine.restore(torchs / "artifact")
    network = engine._network
    wanted = np.array(network.logits(network.body(mx.array(ids[None].astype(np.int32)))))
    base = build(MlxOptions(), FakeContext(folder)).load(
        str(folder / "tied"), framework="mlx", precision="fp32", device="cpu"
    )
    write_model(adapter.fold(base, torchs / "artifact", precision="fp32", device="cpu"), folder / "folded")
    whole = transformers.AutoModelForCausalLM.from_pretrained(folder / "folded").eval()
    with torch.no_grad():
        found = whole(torch.from_numpy(ids[None])).logits.numpy()
    assert np.abs(found - wanted).max() < 1e-5 * np.abs(wanted).max()
    plain = transformers.AutoModelForCausalLM.from_pretrained(folder / "tied").eval()
    with torch.no_grad():
        assert np.abs(plain(torch.from_numpy(ids[None])).logits.numpy() - wanted).max() > 0.1


@pytest.mark.slow
def test_whole_weights_train_as_torchs(folder: Path) -> None:
    """The artifact is a transformers folder with the numbers that training left."""
    import torch
    import transformers

    given = {"adapter": "full", "train": {"max_steps": 4, "batch_size": 8, "max_length": 96, "precision": "fp32"}}
    outputs = [run(folder, "sft", backend, **given) for backend in ("mlx", "torch")]
    mine, torchs = map(metrics, outputs)
    assert [loss for loss, _ in mine] == pytest.approx([loss for loss, _ in torchs], rel=1e-4)
    ids = torch.arange(3, 30)[None]
    loaded = [transformers.AutoModelForCausalLM.from_pretrained(path / "artifact").eval() for path in outputs]
    with torch.no_grad():
        a, b = (model(ids).logits for model in loaded)
    assert float((a - b).abs().max()) < 1e-2 * float(b.abs().max())


def test_peft_loads_the_artifact_with_equal_logits(folder: Path, engine_of: Callable[..., Any]) -> None:
    import mlx.core as mx
    import peft
    import torch
    import transformers
    from finetooth_mlx.adapters import LoraAdapter, LoraOptions

    output = run(folder, "sft", "mlx")
    base = transformers.AutoModelForCausalLM.from_pretrained(folder / "m")
    adapted = peft.PeftModel.from_pretrained(base, output / "artifact").eval()
    ids = np.arange(3, 40)[None]
    with torch.no_grad():
        wanted = adapted(torch.from_numpy(ids)).logits.numpy()
    engine = engine_of(folder / "m", adapter=LoraAdapter(LoraOptions(rank=4)))
    engine.restore(output / "artifact")
    found = np.array(engine._network.model(mx.array(ids.astype(np.int32))))
    assert np.abs(found - wanted).max() < 1e-5 * np.abs(wanted).max()


@pytest.mark.slow
def test_an_artifact_of_torch_is_taken(folder: Path, engine_of: Callable[..., Any]) -> None:
    from finetooth_hooks import UserError
    from finetooth_mlx.adapters import LoraAdapter, LoraOptions

    output = run(folder, "sft", "torch")
    engine = engine_of(folder / "m", adapter=LoraAdapter(LoraOptions(rank=4)))
    engine.restore(output / "artifact")
    engine.export(folder / "again")
    wanted = load_file(output / "artifact" / "adapter_model.safetensors")
    found = load_file(folder / "again" / "adapter_model.safetensors")
    assert all(np.array_equal(found[key], array) for key, array in wanted.items()) and len(found) == len(wanted)
    other = engine_of(folder / "m", adapter=LoraAdapter(LoraOptions(rank=8)))
    with pytest.raises(UserError, match="rank is 4 there and 8 here"):
        other.restore(output / "artifact")


@pytest.mark.slow
def test_a_state_of_the_other_engine_is_refused(folder: Path, engine_of: Callable[..., Any]) -> None:
    from finetooth_hooks import UserError

    output = run(folder, "sft", "torch", checkpoint={"every": 20})
    state = next((output / "checkpoints").glob("*/engine"))
    with pytest.raises(UserError, match="another engine wrote it"):
        engine_of(folder / "m").load(state)
