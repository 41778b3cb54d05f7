"""The Tinker wire, judged by the public client in a process of its own: unmodified, told of the server by variables.

`FT_TINKER_PYTHON` names the interpreter of the client's environment; default is this one.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from finetooth_hooks import Datum
from finetooth_hooks.engine import StepSettings
from finetooth_server.faults import TooMuch
from finetooth_server.limits import admission
from finetooth_server.limits.admission import Admission
from finetooth_server.operations import SUMS
from finetooth_server.settings import Limits, Settings

if find_spec("tinker") is None:
    pytest.skip("the package tinker is not installed", allow_module_level=True)

pytestmark = pytest.mark.slow

PYTHON = os.environ.get("FT_TINKER_PYTHON", sys.executable)

PARTS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head"]
"""What the client's LoRA adds to where it names no part: attention, the layers between, and the head."""

BEGIN = """
import json, os, sys, warnings
warnings.simplefilter("ignore")
import numpy as np, tinker
from tinker import types

def datum(tokens, **inputs):
    inputs = {name: np.asarray(values, np.float32) for name, values in inputs.items()}
    targets = np.asarray(tokens[1:])
    return types.Datum(types.ModelInput.from_ints(tokens[:-1]), {"target_tokens": targets, **inputs})

def say(**what):
    print(json.dumps(what), flush=True)

given = json.loads(sys.argv[1])
service = tinker.ServiceClient()
"""

END = """
os._exit(0)  # the client leaves a thread running, which now and then aborts a process that ends in the usual way
"""


def client(url: str, script: str, **given: Any) -> list[dict[str, Any]]:
    """What a script of the client said."""
    environment = {
        **os.environ, "TINKER_BASE_URL": url, "TINKER_API_KEY": "tml-local", "TINKER_TELEMETRY": "0",
    }  # fmt: skip
    done = subprocess.run(
        [PYTHON, "-c", BEGIN + script + END, json.dumps(given)],
        env=environment, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


@pytest.fixture(scope="module", params=["torch", "mlx"])
def url(request: Any, serve: Any, recipe: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> str:
    """A server over an engine; what is compared with a local one is compared with torch's."""
    plain = {**recipe, "adapter": {"name": "lora", "dropout": 0.0}}
    if request.param == "mlx":
        pytest.importorskip("mlx_lm", reason="mlx-lm is not installed")
        plain["backend"] = "mlx"
    settings = Settings(tmp_path_factory.mktemp("tinker"), {"tiny": plain, "org/tiny": plain}, keyless=True)
    served: str = serve(settings, faces=("tinker",)).url
    return served


def rows(seed: int, count: int = 4) -> list[dict[str, Any]]:
    """Tokens, weights and what reinforcement learning needs."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        length = int(rng.integers(6, 16))
        found.append(
            {
                "tokens": rng.integers(3, 128, size=length).tolist(),
                "weights": rng.choice([0.0, 0.5, 1.0], size=length - 1).tolist(),
                "logprobs": (-rng.exponential(size=length - 1) - 3).tolist(),
                "advantages": rng.normal(size=length - 1).tolist(),
            }
        )
    return found


def data(rows: list[dict[str, Any]], *names: str) -> list[Datum]:
    """The same as data of a local engine, every target counted."""
    ours = {"logprobs": "old_logprobs"}
    return [
        Datum.from_tokens(row["tokens"]).__class__(
            Datum.from_tokens(row["tokens"]).input,
            row["tokens"][1:],
            mask=np.ones(len(row["tokens"]) - 1, bool),
            fields={ours.get(name, name): np.asarray(row[name], np.float32) for name in names},
        )
        for row in rows
    ]


TRAIN = """
training = service.create_lora_training_client(base_model="tiny", rank=4, seed=11)
for step, rows in enumerate(given["steps"]):
    sent = [datum(row["tokens"], weights=row["weights"]) for row in rows]
    forward = training.forward_backward(sent, "cross_entropy")
    adam = types.AdamParams(learning_rate=0.01, weight_decay=0.1, grad_clip_norm=2.0)
    stepped = training.optim_step(adam)
    result = forward.result()
    say(loss=result.metrics["loss:sum"], norm=stepped.result().metrics["grad_norm"],
        logprobs=[one["logprobs"].tolist() for one in result.loss_fn_outputs])
"""


def test_training_equals_a_local_run(url: str, context: Any, recipe: dict[str, Any]) -> None:
    steps = [rows(n) for n in range(4)]
    said = client(url, TRAIN, steps=steps)
    local = {
        **recipe,
        "adapter": {"name": "lora", "rank": 4, "alpha": 32, "targets": PARTS},
        "train": {**recipe["train"], "seed": 11, "max_grad_norm": 0.0},
    }
    engine, loss = context.engine(local), context.context(local).loss("cross_entropy")
    settings = StepSettings(0.01, 2.0, {"betas": (0.9, 0.95), "eps": 1e-12, "weight_decay": 0.1})
    assert len(said) == 4
    for line, of in zip(said, steps, strict=True):
        want = engine.forward_backward(data(of, "weights"), loss, normalizer=SUMS)
        assert line["loss"] == pytest.approx(want.loss, rel=1e-6)
        assert line["norm"] == pytest.approx(engine.step(settings=settings).grad_norm, rel=1e-5)
        for have, outputs in zip(line["logprobs"], want.outputs, strict=True):
            np.testing.assert_allclose(have, outputs["logprobs"], atol=1e-6)
    assert said[-1]["loss"] != said[0]["loss"]


CUSTOM = """
import torch

def likely(logprobs, weights):
    loss = -(logprobs * weights).sum()
    return loss, {"custom/likely:sum": loss}

def curved(data, logprobs):
    loss = sum((one.exp() * torch.linspace(-1, 1, len(one))).sum() + (one**2).mean() for one in logprobs)
    return loss, {"curved": float(loss)}

sent = [datum(row["tokens"], weights=row["weights"]) for row in given["rows"]]
ranks = {"logprobs": 1, "weights": 1}
ways = {
    "built in": lambda training: training.forward_backward(sent, "cross_entropy"),
    "made": lambda training: training.forward_backward_custom(
        sent, service.create_custom_loss(likely, input_ranks=ranks).result()),
    "curved": lambda training: training.forward_backward_custom(sent, curved),
}
for name, way in ways.items():
    training = service.create_lora_training_client(base_model="tiny", rank=4, seed=11)
    called = way(training)
    stepped = training.optim_step(types.AdamParams(learning_rate=0.01))
    metrics = {key: float(value) for key, value in called.result().metrics.items()}
    again = training.forward(sent, "cross_entropy").result()
    say(way=name, norm=stepped.result().metrics["grad_norm"], metrics=metrics,
        logprobs=[one["logprobs"].tolist() for one in again.loss_fn_outputs])
"""


def test_losses_of_the_clients_own_train_as_built_in_ones(url: str, context: Any, recipe: dict[str, Any]) -> None:
    """`create_custom_loss` and `forward_backward_custom`, which the unmodified client computes by itself: a step like
    the built-in loss's where the formula is the same, and one like the engine's own from dL/dlogprob where not."""
    of = rows(3)
    built, made, curved = client(url, CUSTOM, rows=of)
    assert made["norm"] == pytest.approx(built["norm"], rel=1e-6)
    assert made["metrics"]["custom/likely:sum"] == pytest.approx(built["metrics"]["loss:sum"], rel=1e-5)
    for have, want in zip(made["logprobs"], built["logprobs"], strict=True):
        np.testing.assert_allclose(have, want, atol=1e-6)

    local = {
        **recipe,
        "adapter": {"name": "lora", "rank": 4, "alpha": 32, "targets": PARTS},
        "train": {**recipe["train"], "seed": 11, "max_grad_norm": 0.0},
    }
    engine = context.engine(local)
    forward = engine.forward(data(of, "weights"))
    logprobs = [np.asarray(one["logprobs"], np.float64) for one in forward.outputs]
    slopes = [np.exp(p) * np.linspace(-1, 1, len(p)) + 2 * p / len(p) for p in logprobs]
    engine.backward(forward.handle, [one.astype(np.float32) for one in slopes])
    assert curved["norm"] == pytest.approx(engine.step().grad_norm, rel=1e-4)
    want = sum((np.exp(p) * np.linspace(-1, 1, len(p))).sum() + (p**2).mean() for p in logprobs)
    assert curved["metrics"]["curved"] == pytest.approx(want, rel=1e-5)


LOSSES = """
training = service.create_lora_training_client(base_model="tiny", rank=4, seed=11)
names = {"cross_entropy": ("weights",)}
for loss, config in given["losses"]:
    sent = [datum(row["tokens"], **{n: row[n] for n in names.get(loss, ("logprobs", "advantages"))})
            for row in given["rows"]]
    fused = training.forward_backward(sent, loss, config or None).result()
    norm = training.optim_step(types.AdamParams(learning_rate=0.0)).result().metrics["grad_norm"]
    only = training.forward(sent, loss, config or None).result()
    say(loss=loss, fused=fused.metrics["loss:sum"], only=only.metrics["loss:sum"], norm=norm,
        logprobs=[one["logprobs"].tolist() for one in fused.loss_fn_outputs])
"""


def token_loss(loss: str, p: Any, row: dict[str, Any], config: dict[str, float]) -> tuple[Any, Any]:
    """Loss and its slope by token, in float64, as the wire's description has them."""
    if loss == "cross_entropy":
        w = np.asarray(row["weights"])
        return -w * p, -w
    q, a = np.asarray(row["logprobs"]), np.asarray(row["advantages"])
    ratio = np.exp(p - q)
    low, high = config.get("clip_low_threshold"), config.get("clip_high_threshold")
    if loss == "importance_sampling":
        return -ratio * a, -ratio * a
    if loss == "ppo":
        held = np.clip(ratio, low or 0.8, high or 1.2)
        free = ratio * a <= held * a
        return -np.where(free, ratio * a, held * a), -np.where(free, ratio * a, 0.0)
    if loss == "cispo":
        held = np.clip(ratio, low or 0.0, high or 4.0)
        return -held * p * a, -held * a
    beta = config.get("beta", 0.05)
    return -(p * a - beta / 2 * (p - q) ** 2), -(a - beta * (p - q))


def test_built_in_losses_equal_their_formulas(url: str, context: Any, recipe: dict[str, Any]) -> None:
    losses = [
        ("cross_entropy", {}), ("importance_sampling", {}), ("ppo", {}), ("cispo", {}), ("dro", {"beta": 0.2}),
        ("ppo", {"clip_low_threshold": 0.5, "clip_high_threshold": 1.5}),
    ]  # fmt: skip
    of = rows(7)
    said = client(url, LOSSES, losses=losses, rows=of)
    local = {
        **recipe,
        "adapter": {"name": "lora", "rank": 4, "alpha": 32, "targets": PARTS},
        "train": {**recipe["train"], "seed": 11},
    }
    engine = context.engine(local)
    for line, (loss, config) in zip(said, losses, strict=True):
        scores = [np.asarray(one, np.float64) for one in line["logprobs"]]
        pairs = [token_loss(loss, p, row, config) for p, row in zip(scores, of, strict=True)]
        want = sum(float(values.sum()) for values, _ in pairs)
        assert line["fused"] == pytest.approx(want, rel=1e-5), loss
        assert line["only"] == pytest.approx(want, rel=1e-5), loss
        handle = engine.forward(data(of)).handle  # the same gradient, from the slopes on paper
        norm = engine.backward(handle, [slope.astype(np.float32) for _, slope in pairs]).grad_norm
        engine.zero_grad()
        assert line["norm"] == pytest.approx(norm, rel=1e-4), loss


SAMPLE = """
training = service.create_lora_training_client(base_model="tiny", rank=4, seed=11)
sent = [datum(row["tokens"], weights=row["weights"]) for row in given["rows"]]
for _ in range(3):
    training.forward_backward(sent, "cross_entropy").result()
    training.optim_step(types.AdamParams(learning_rate=0.05)).result()
live = training.save_weights_and_get_sampling_client(name="live")
prompt, many = types.ModelInput.from_ints([10, 20, 30]), types.SamplingParams(max_tokens=6, temperature=0.0)
first = live.sample(prompt, 2, many).result()
path = training.save_state("here").result().path
before = training.forward(sent, "cross_entropy").result().metrics["loss:sum"]
again = service.create_training_client_from_state_with_optimizer(path)
after = again.forward(sent, "cross_entropy").result().metrics["loss:sum"]
for one in (training, again):
    one.forward_backward(sent, "cross_entropy").result()
    one.optim_step(types.AdamParams(learning_rate=0.05)).result()
ends = [one.forward(sent, "cross_entropy").result().metrics["loss:sum"] for one in (training, again)]
tokens = list(first.sequences[0].tokens)
scored = live.compute_logprobs(types.ModelInput.from_ints([10, 20, 30, *tokens])).result()
seeds = [live.sample(prompt, 1, types.SamplingParams(max_tokens=8, seed=5)) for _ in range(3)]
base = service.create_sampling_client(base_model="tiny").sample(prompt, 1, many).result()
say(path=path, before=before, after=after, ends=ends, tokens=tokens, stop=first.sequences[0].stop_reason,
    logprobs=list(first.sequences[0].logprobs), scored=scored, base=list(base.sequences[0].tokens),
    seeds=[list(one.result().sequences[0].tokens) for one in seeds],
    ids=len({one.sequence_id for one in first.sequences}))
"""


def test_saving_sampling_and_resuming(url: str) -> None:
    (said,) = client(url, SAMPLE, rows=rows(3))
    assert said["path"].startswith("tinker://") and said["path"].endswith("/weights/here")
    assert said["before"] == said["after"] and said["ends"][0] == said["ends"][1] != said["before"]
    assert said["scored"][0] is None and len(said["scored"]) == 3 + len(said["tokens"])
    np.testing.assert_allclose(said["scored"][3:], said["logprobs"], atol=1e-5)
    assert said["base"] != said["tokens"] and said["ids"] == 2
    assert said["seeds"][0] == said["seeds"][1] == said["seeds"][2]


FAILURES = """
training = service.create_lora_training_client(base_model="tiny", rank=4)
good = [datum(row["tokens"], weights=row["weights"]) for row in given["rows"]]
bad = [
    (good, "gspo"), ([datum([1, 2, 3], weights=[1.0])], "cross_entropy"), ([datum([1, 999, 3])], "cross_entropy"),
    (good, "ppo"),
]
sent = [training.forward_backward(rows, loss) for rows, loss in [*bad, (good, "cross_entropy")]]
for one in sent:
    try:
        say(loss=one.result().metrics["loss:sum"])
    except tinker.RequestFailedError as error:
        say(error=str(error))
try:
    service.create_lora_training_client(base_model="huge").get_info()
except tinker.TinkerError as error:
    say(error=str(error))
"""


def test_what_fails_fails_alone(url: str) -> None:
    said = client(url, FAILURES, rows=rows(3))
    for line, words in zip(
        said,
        ("loss 'gspo': not offered, what it computes is not documented", "weights has shape", "999", "old_logprobs"),
        strict=False,
    ):
        assert words in line["error"]
    assert said[4]["loss"] > 0
    assert "no base model 'huge' is served here" in said[5]["error"]


KEPT = """
import urllib.request
rest = tinker.RestClient()
training = service.create_lora_training_client(base_model="tiny", rank=4, user_metadata={"task": "cats"})
sent = [datum(row["tokens"], weights=row["weights"]) for row in given["rows"]]
training.forward_backward(sent, "cross_entropy").result()
training.optim_step(types.AdamParams(learning_rate=0.05)).result()
state = training.save_state("kept", ttl_seconds=7200).result().path
sampler = training.save_weights_for_sampler("light").result().path
outside = training.save_weights_external("files").result().path
run = state.removeprefix("tinker://").split("/")[0]
runs = rest.list_training_runs(limit=5).result()
mine = rest.list_user_checkpoints().result()
rest.set_checkpoint_ttl_from_tinker_path(state, None).result()
rest.publish_checkpoint_from_tinker_path(sampler).result()
shown = {one.tinker_path: one for one in rest.list_checkpoints(run).result().checkpoints}
rest.unpublish_checkpoint_from_tinker_path(sampler).result()
urls = rest.get_external_weights_urls(outside).result()
config = json.loads(urllib.request.urlopen(urls.urls["adapter_config.json"]).read())
copy = rest.copy_weights(state, "local", ttl_seconds=3600).result()
again = service.create_training_client_from_state_with_optimizer(copy)
losses = [one.forward(sent, "cross_entropy").result().metrics["loss:sum"] for one in (training, again)]
session = run.split(":")[0]
seen = rest.get_session(session).result()
found = rest.search_sessions(types.SessionSearchRequest(session_id=session)).result().sessions
storage = tinker.AdminClient().get_current_checkpoint_storage_usage().result().data[0]
rest.delete_checkpoint_from_tinker_path(sampler).result()
left = [one.tinker_path for one in rest.list_checkpoints(run).result().checkpoints]
newest = runs.training_runs[0]
say(first=newest.training_run_id, task=newest.user_metadata, total=runs.cursor.total_count,
    listed=sorted(one.tinker_path for one in mine.checkpoints), asked=sorted([state, sampler, outside]), run=run,
    by_path=rest.get_training_run_by_tinker_path(state).result().training_run_id,
    expires=str(shown[state].expires_at), public=shown[sampler].public,
    kinds=sorted(one.checkpoint_type for one in shown.values()),
    rank=config["r"], losses=losses, sessions=session in rest.list_sessions().result().sessions,
    runs=seen.training_run_ids, found=[one.session_id for one in found], status=found[0].status.type,
    count=storage.checkpoint_count, left=left, info=rest.get_weights_info_by_tinker_path(state).result().train_unembed)
"""


def test_checkpoints_runs_and_sessions(serve: Any, recipe: dict[str, Any], tmp_path: Path) -> None:
    settings = Settings(tmp_path, {"tiny": recipe}, keyless=True)
    (said,) = client(serve(settings, faces=("tinker",)).url, KEPT, rows=rows(3))
    assert said["first"] == said["run"] == said["by_path"] and said["task"] == {"task": "cats"} and said["total"] == 1
    assert said["listed"] == said["asked"] and said["kinds"] == ["external", "sampler", "training"]
    assert said["expires"] == "None" and said["public"] and said["rank"] == 4 and said["info"] is True
    assert said["losses"][0] == said["losses"][1]
    assert said["sessions"] and said["runs"][0] == said["run"] and said["status"] == "active"
    assert said["found"] == [said["run"].split(":")[0]] and said["count"] == 4
    assert len(said["left"]) == 2 and not any("sampler_weights" in path for path in said["left"])


LOADED = """
sent = [datum(row["tokens"], weights=row["weights"]) for row in given["rows"]]
adam = types.AdamParams(learning_rate=0.05)

def steps(training, count):
    for _ in range(count):
        training.forward_backward(sent, "cross_entropy").result()
        training.optim_step(adam).result()
    return training.forward(sent, "cross_entropy").result().metrics["loss:sum"]

one = service.create_lora_training_client(base_model="tiny", rank=4, seed=3)
steps(one, 2)
path = one.save_state("two").result().path
at = one.forward(sent, "cross_entropy").result().metrics["loss:sum"]
on = steps(one, 2)
two = service.create_lora_training_client(base_model="tiny", rank=4, seed=4)
steps(two, 3)  # with moments of its own
two.load_state(path).result()
weights = two.forward(sent, "cross_entropy").result().metrics["loss:sum"]
weights_on = steps(two, 2)
fresh = steps(service.create_training_client_from_state(path), 2)
two.load_state_with_optimizer(path).result()
whole = two.forward(sent, "cross_entropy").result().metrics["loss:sum"]
whole_on = steps(two, 2)
say(at=at, on=on, weights=weights, weights_on=weights_on, fresh=fresh, whole=whole, whole_on=whole_on)
"""


def test_loading_with_the_optimizer_goes_on_and_without_it_begins_anew(url: str) -> None:
    (said,) = client(url, LOADED, rows=rows(5))
    assert said["weights"] == said["whole"] == said["at"]
    assert said["whole_on"] == said["on"], "the optimizer was not taken along"
    assert said["weights_on"] == said["fresh"] != said["on"], "moments of before the load were kept"


ASKED = """
sampling = service.create_sampling_client(base_model="org/tiny")
prompt = types.ModelInput.from_ints([10, 20, 30, 40])
targets = types.TensorData(data=[1, 2, 3, -1, 5, 6], dtype="int64", shape=[3, 2])
answer = sampling.sample(prompt, 1, types.SamplingParams(max_tokens=3, seed=1, stop=[]), topk_sample_logprobs=2,
    include_prompt_logprobs=True, target_prompt_logprobs=targets, prompt_alt_tokens_k=4).result()
one = answer.sequences[0]
ranked = sampling.sample(prompt, 1, types.SamplingParams(max_tokens=1), include_prompt_logprobs=True,
                         topk_prompt_logprobs=128).result()
last = sampling.compute_logprobs(prompt, prompt_logprobs_last_n=1).result()
training = service.create_lora_training_client(base_model="org/tiny", rank=2, train_mlp=False, train_unembed=False)
other = service.create_lora_training_client(base_model="tiny", rank=8, train_attn=False)
words = training.get_tokenizer().encode("abc", add_special_tokens=False)
errors = []
for rate in (-1.0, float("nan")):
    try:
        training.optim_step(types.AdamParams(learning_rate=rate)).result()
        errors.append("none")
    except Exception as error:
        errors.append(str(error))
refused = []
for make in (lambda: service.create_sampling_client(base_model="tiny", record_stability_info=True).sample(prompt, 1,
             types.SamplingParams(max_tokens=1)).result(),
             lambda: training.save_weights_external("x", age_encryption_recipients=["age1x"]).result(),
             lambda: tinker.RestClient().export_session_trace("s").result(),
             lambda: tinker.RestClient().assign_session_project("s", "p").result(),
             lambda: tinker.AdminClient().get_audit_log().result(),
             lambda: tinker.AdminClient().get_billing_usage("2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z").result()):
    try:
        make()
        refused.append("none")
    except Exception as error:
        refused.append(str(error))
say(top=[[list(pair) for pair in row] for row in one.topk_logprobs], tokens=list(one.tokens), own=list(one.logprobs),
    targets=answer.target_prompt_logprobs.tolist(), alternatives=answer.prompt_alt_tokens.tokens.tolist(),
    drawn=answer.prompt_alt_tokens.logprobs.tolist(),
    prompt=[[list(pair) for pair in row] if row else None for row in ranked.topk_prompt_logprobs], last=last,
    words=words, ranks=[training.get_info().lora_rank, other.get_info().lora_rank], errors=errors, refused=refused,
    models=sorted(one.model_name for one in service.get_server_capabilities().supported_models))
"""


def test_sampling_tokenizers_shapes_and_refusals(url: str) -> None:
    (said,) = client(url, ASKED)
    table = [dict(row) for row in said["prompt"][1:]]  # log-probability of every token at each place of the prompt
    for row, (ids, found) in enumerate(zip([[1, 2], [3, -1], [5, 6]], said["targets"], strict=True)):
        assert found == pytest.approx([0.0 if one < 0 else table[row][one] for one in ids], abs=1e-5)
    for row, ids in enumerate(said["alternatives"]):
        assert said["drawn"][row] == pytest.approx([table[row][one] for one in ids], abs=1e-5)
    for token, own, top in zip(said["tokens"], said["own"], said["top"], strict=True):
        assert len(top) == 2 and top[0][1] >= top[1][1]
        assert token not in dict(top) or dict(top)[token] == pytest.approx(own, abs=1e-5)
        assert token in dict(top) or own <= top[1][1] + 1e-5
    assert said["last"][:3] == [None] * 3 and said["last"][3] == pytest.approx(table[2][40], abs=1e-5)
    assert said["words"] == [97, 98, 99] and said["ranks"] == [2, 8] and said["models"] == ["org/tiny", "tiny"]
    assert all("learning_rate" in error or "NaN" in error or "nan" in error for error in said["errors"]), said["errors"]
    names = ("record_stability_info", "age_encryption", "trace", "project", "audit", "billing")
    for error, name in zip(said["refused"], names, strict=True):
        assert name in error and "not offered" in error, error


WAITS = """
training = service.create_lora_training_client(base_model="tiny", rank=4)
sampling = service.create_sampling_client(base_model="tiny")
asked = [sampling.sample(types.ModelInput.from_ints([10, 20]), 1, types.SamplingParams(max_tokens=2)) for _ in range(8)]
steps = [training.forward_backward([datum([5, 6], weights=[1.0])], "cross_entropy") for _ in range(4)]
say(samples=[len(one.result().sequences) for one in asked], losses=[one.result().metrics["loss:sum"] for one in steps])
"""


def test_the_client_comes_again_when_it_was_told_to_wait(
    serve: Any, recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = Mock(wraps=TooMuch)
    monkeypatch.setattr(admission, "TooMuch", told)
    monkeypatch.setattr(Admission, "others_at_work", lambda self, tenant: True)
    monkeypatch.setattr(admission, "PATIENCE", 0.2)  # so that nobody is let in late instead
    limits = Limits(requests=3)
    server = serve(Settings(tmp_path / "server", {"tiny": recipe}, keyless=True, limits=limits), faces=("tinker",))
    (said,) = client(server.url, WAITS)
    assert told.call_count, "nobody was told to wait"
    assert said["samples"] == [1] * 8 and len(said["losses"]) == 4
