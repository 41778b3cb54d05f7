"""What a call would take is known before it is accepted, and compared with what one call may take."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from finetooth_hooks import Sampling, UserError
from finetooth_server.batches.scores import ScoreRequest
from finetooth_server.keys import Caller
from finetooth_server.limits.costs import Cost, cost_of, cost_of_sampling
from finetooth_server.sections import MOST
from finetooth_server.settings import Limits

ME = Caller("local", "", frozenset({"train", "sample", "read"}))


def no_images(*given: Any) -> Any:
    raise AssertionError("there are none")


@pytest.fixture(scope="module")
def facts(context: Any, recipe: dict[str, Any]) -> Any:
    return context.context(recipe).facts


def test_keys_and_values_are_counted_as_they_are_held(facts: Any) -> None:
    sampling = Sampling(max_tokens=10, n=3)
    cost = cost_of_sampling([[5] * 7], sampling, facts)
    assert (cost.tokens, cost.samples) == (7 + 3 * 10, 3)
    numbers = 2 * facts.layers * facts.kv_heads * facts.head_dim  # a key and a value in each layer, for a token
    assert cost.memory >= 3 * (7 + 10) * numbers * 2
    twice = cost_of_sampling([[5] * 7], Sampling(max_tokens=10, n=6), facts)
    assert twice.memory == 2 * cost.memory


def test_new_tokens_end_where_the_model_does(facts: Any) -> None:
    within = cost_of_sampling([[5]], Sampling(max_tokens=facts.max_positions - 1), facts)
    beyond = cost_of_sampling([[5]], Sampling(max_tokens=10**6), facts)
    assert within.memory == beyond.memory and beyond.tokens > within.tokens


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(stop=("a",) * 65),
        Sampling(stop=("a" * 1001,)),
        Sampling(stop=("a", "")),
        Sampling(stop_ids=(5,) * 4097),
    ],
)
def test_ends_of_a_completion_are_bounded_on_every_face(facts: Any, sampling: Sampling) -> None:
    with pytest.raises(UserError, match="stop"):
        cost_of_sampling([[5]], sampling, facts)


@pytest.mark.parametrize(
    "more,least",
    [
        ({"returns": ["logits"]}, lambda n, f: 4 * n * f.vocab_size),
        ({"returns": ["hidden"]}, lambda n, f: 4 * n * f.hidden_size),
        ({"top_k": 5}, lambda n, f: 8 * n * f.vocab_size),
    ],
)
def test_wide_answers_are_counted(facts: Any, ask: SimpleNamespace, more: Any, least: Any) -> None:
    data = ask.sent(ask.data(0, 1))
    n = len(data[0]["targets"]["base64"]) * 3 // 4 // 8 if isinstance(data[0]["targets"], dict) else 0
    plain, wide = (cost_of("forward", {"data": data, **given}, facts) for given in ({}, more))
    assert wide.memory - plain.memory >= least(max(n, 1), facts)


@pytest.mark.parametrize(
    "cost,word",
    [
        (Cost(samples=1025), "1025 samples in one call, 1024 are allowed"),
        (Cost(tokens=2**20 + 1), "tokens in one call"),
        (Cost(memory=2**31 + 2**20), "MB are allowed"),
        (Cost(2**20, 1024, 2**31), ""),
    ],
)
def test_the_refusal_says_what_the_limit_is(cost: Cost, word: str) -> None:
    said = cost.refusal("generate", Limits())
    assert word in said and bool(said) == bool(word)


def test_dear_calls_are_refused_before_they_are_executed(start: Any, ask: SimpleNamespace, tmp_path: Path) -> None:
    service = start(limits={"memory": 2**20})
    made = service.create_model(ME, service.open_session(ME), "tiny", {}, face="test")
    session = service.open_session(ME)
    service.open_sampler(ME, session, "s", base="tiny")
    many = service.sample(ME, "s", [5], Sampling(max_tokens=1, n=10**6), seeded=True, face="test")
    wide = service.submit(
        ME, made.queue, "forward", {"data": ask.sent(ask.data(0, 200)), "returns": ["logits"]}, face="test"
    )
    top = service.sample(
        ME, "s", [5] * 200, Sampling(max_tokens=1), seeded=True, face="test", asked=ScoreRequest(top_prompt=1024)
    )
    for call, word in ((many, "1000000 samples"), (wide, "MB"), (top, "MB")):
        with pytest.raises(RuntimeError, match=word):
            ask.result(service, ME, call)


def test_sparse_tensors_of_one_request_share_their_room() -> None:
    pytest.importorskip("tinker")
    from finetooth_hooks import DataError
    from finetooth_server.tinker import convert
    from tinker.proto import tinker_public_pb2 as proto

    message = proto.ForwardBackwardRequest(model_id="m", seq_id=1, loss_fn="cross_entropy")
    for _ in range(3):
        datum = message.data.add()
        datum.model_input.add().encoded_text.tokens = np.arange(4, dtype="<i4").tobytes()
        tensor = datum.loss_fn_inputs["target_tokens"]
        tensor.dtype = proto.DTYPE_INT64
        tensor.shape.extend([4, convert.CELLS // 10])
        tensor.sparse_csr.crow_indices = np.zeros(5, "<i8").tobytes()
    with pytest.raises(DataError, match=r"data\[2\].*33,554,432 cells"):
        convert.forward_backward_call(message, images=no_images)


@pytest.mark.parametrize("targets", [r"(([a-z_.0-9])+)+!", ".*.*.*.*", ["q_proj", "(a|a)*"], "../../etc/passwd"])
def test_a_client_brings_no_patterns_and_no_paths(start: Any, targets: Any) -> None:
    service = start()
    with pytest.raises(Exception, match=r"adapter\.targets.* cannot be a name"):
        service.create_model(
            ME, service.open_session(ME), "tiny", {"adapter": {"name": "lora", "targets": targets}}, face="test"
        )


@pytest.mark.parametrize(
    "adapter",
    [
        {"name": "lora", "targets": [f"q{n}" for n in range(MOST)]},
        {"name": "lora", "ranks": {f"q{n}": 4 for n in range(MOST)}},
        {"name": "lora", "more": [[[5]] * 600, {"x": [5] * 600}]},
    ],
)
def test_a_section_has_a_bounded_number_of_names(start: Any, adapter: Any) -> None:
    """Each is looked for among all modules, by the thread that everybody waits for."""
    service = start()
    with pytest.raises(UserError, match=r"^adapter: more than 1024 names and numbers \(send fewer\)"):
        service.create_model(ME, service.open_session(ME), "tiny", {"adapter": adapter}, face="test")


def test_names_of_modules_pass(start: Any, ask: SimpleNamespace) -> None:
    service = start()
    sections = {"adapter": {"name": "lora", "rank": 2, "targets": ["q_proj", "model.layers.0.mlp.up_proj"]}}
    made = ask.result(service, ME, service.create_model(ME, service.open_session(ME), "tiny", sections, face="test"))
    assert made["trained"] == 2 * (32 + 32) * 2 + 2 * (32 + 48)  # q_proj of both layers, up_proj of the first
