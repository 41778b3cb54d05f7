"""Log-probabilities beside completions, on the Tinker wire's plain requests: against float64 NumPy over the model's own
logits, and draws against the distribution that they come from."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import httpx2 as httpx
import numpy as np
import pytest
from finetooth_hooks import Datum
from finetooth_server.batches import scores
from finetooth_server.settings import Limits, Settings

if find_spec("tinker") is None:
    pytest.skip("the package tinker is not installed", allow_module_level=True)

PROMPT = [10, 20, 30, 40, 50]


@pytest.fixture(scope="module")
def ask(serve: Callable[..., Any], recipe: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Sends `asample`; gives the protobuf answer, or the error."""
    from tinker.proto import tinker_public_pb2 as proto

    settings = Settings(
        tmp_path_factory.mktemp("scores"), {"tiny": recipe}, keyless=True, limits=Limits(memory=64 * 2**20)
    )
    url = f"{serve(settings, faces=('tinker',)).url}/api/v1"

    def post(path: str, body: Any) -> httpx.Response:
        return httpx.post(f"{url}/{path}", json=body, timeout=60)

    def send(**more: Any) -> Any:
        params = {"max_tokens": 1, "seed": 5, **more.pop("params", {})}
        body = {
            "base_model": "tiny", "prompt": {"chunks": [{"type": "encoded_text", "tokens": PROMPT}]},
            "sampling_params": params, **more,
        }  # fmt: skip
        promise = post("asample", body)
        assert promise.status_code == 200, promise.text
        answer = post("retrieve_future", {"request_id": promise.json()["request_id"]})
        if answer.headers["content-type"] == "application/json":
            return answer.json()["error"]
        message = proto.SampleResponse()
        message.ParseFromString(answer.content)
        return message

    return send


@pytest.fixture(scope="module")
def truth(context: Any, recipe: dict[str, Any]) -> Callable[[list[int]], np.ndarray]:
    """(N - 1, V) log-probabilities by NumPy."""
    engine = context.engine({**recipe, "adapter": "full"})

    def of(tokens: list[int]) -> np.ndarray:
        logits = engine.forward([Datum.from_tokens(tokens)], returns=("logits",)).outputs[0]["logits"]
        logits = np.asarray(logits, np.float64)
        return logits - np.log(np.exp(logits).sum(-1, keepdims=True))

    return of


def values(tensor: Any, dtype: str) -> np.ndarray:
    content = tensor.dense if tensor.WhichOneof("encoding") == "dense" else tensor.sparse_csr.values
    return np.frombuffer(content, dtype)


def top_of(message: Any) -> tuple[np.ndarray, np.ndarray]:
    shape = message.length, message.k
    return tuple(  # type: ignore[return-value]
        np.frombuffer(content, dtype).reshape(shape)
        for content, dtype in ((message.token_ids, "<i4"), (message.logprobs, "<f4"))
    )


def test_the_likeliest_where_each_token_was_sampled(ask: Any, truth: Any) -> None:
    answer = ask(topk_sample_logprobs=3, num_samples=2, params={"max_tokens": 4, "stop": []})
    assert len(answer.sequences) == 2 and not answer.HasField("topk_prompt_logprobs")
    for one in answer.sequences:
        tokens = np.frombuffer(one.tokens, "<i4").tolist()
        want = truth([*PROMPT, *tokens])[len(PROMPT) - 1 :]
        ids, found = top_of(one.topk_sampled_logprobs)
        assert ids.shape == (4, 3) and (ids == np.argsort(-want, -1, kind="stable")[:, :3]).all()
        np.testing.assert_allclose(found, np.take_along_axis(want, ids, -1), atol=1e-5)
        own = want[np.arange(4), tokens]
        np.testing.assert_allclose(np.frombuffer(one.logprobs, "<f4"), own, atol=1e-5)
    assert not ask().sequences[0].HasField("topk_sampled_logprobs")


def test_tokens_that_the_request_names(ask: Any, truth: Any) -> None:
    want = truth(PROMPT)
    ids = np.array([[1, 2], [3, -1], [0, 127], [7, 7]])
    tensor = {"data": ids.ravel().tolist(), "dtype": "int64", "shape": [4, 2]}
    found = ask(target_prompt_logprobs=tensor).target_prompt_logprobs
    assert list(found.shape) == [4, 2] and found.WhichOneof("encoding") == "dense"
    expected = np.where(ids < 0, 0.0, np.take_along_axis(want, np.maximum(ids, 0), -1))
    np.testing.assert_allclose(values(found, "<f4").reshape(4, 2), expected, atol=1e-5)
    sparse = {
        "data": [9, 8, 7], "dtype": "int64", "shape": [4, 5],
        "sparse_crow_indices": [0, 2, 2, 2, 3], "sparse_col_indices": [0, 4, 1],
    }  # fmt: skip
    found = ask(target_prompt_logprobs=sparse).target_prompt_logprobs
    assert list(found.shape) == [4, 5]
    assert np.frombuffer(found.sparse_csr.crow_indices, "<i8").tolist() == sparse["sparse_crow_indices"]
    assert np.frombuffer(found.sparse_csr.col_indices, "<i8").tolist() == sparse["sparse_col_indices"]
    np.testing.assert_allclose(values(found, "<f4"), [want[0, 9], want[0, 8], want[3, 7]], atol=1e-5)
    for wrong in (
        {**tensor, "shape": [5, 2]}, {**tensor, "data": [1]}, {**tensor, "dtype": "float32"},
        {**tensor, "data": [128] * 8}, {**tensor, "data": [-2] * 8}, {**sparse, "sparse_col_indices": [0, 5, 1]},
        {**sparse, "sparse_crow_indices": [0, 2, 1, 2, 3]},
    ):  # fmt: skip
        assert "target_prompt_logprobs" in ask(target_prompt_logprobs=wrong), wrong


def test_alternatives_are_drawn_from_the_distribution(ask: Any, truth: Any) -> None:
    """At temperature T the share of a token goes to p^(1/T), normed; its log-probability is the model's own."""
    want = truth(PROMPT)
    for temperature in (0.7, 1.0):
        drawn = ask(prompt_alt_tokens_k=1000, params={"temperature": temperature}).prompt_alt_tokens
        assert list(drawn.tokens.shape) == list(drawn.logprobs.shape) == [4, 1000]
        tokens = values(drawn.tokens, "<i4").reshape(4, 1000)
        scored = values(drawn.logprobs, "<f4").reshape(4, 1000)
        np.testing.assert_allclose(scored, np.take_along_axis(want, tokens, -1), atol=1e-5)
        p = np.exp(want / temperature)
        p /= p.sum(-1, keepdims=True)
        for row in range(4):
            share = np.bincount(tokens[row], minlength=p.shape[1]) / 1000
            spread = np.sqrt(p[row] * (1 - p[row]) / 1000)
            assert (np.abs(share - p[row]) < 5 * spread + 1e-3).all()
    again = [ask(prompt_alt_tokens_k=4, params={"seed": seed}).prompt_alt_tokens.tokens.dense for seed in (1, 1, 2)]
    assert again[0] == again[1] != again[2]
    greedy = ask(prompt_alt_tokens_k=2, params={"temperature": 0.0}).prompt_alt_tokens.tokens
    assert (values(greedy, "<i4").reshape(4, 2) == want.argmax(-1)[:, None]).all()


def test_only_the_end_of_the_prompt_is_scored(ask: Any, truth: Any) -> None:
    want = truth(PROMPT)[np.arange(4), PROMPT[1:]]
    answer = ask(prompt_logprobs=True, prompt_logprobs_last_n=2, topk_prompt_logprobs=2)
    found = np.frombuffer(answer.prompt_logprobs, "<f4")
    assert np.isnan(found[:3]).all()
    np.testing.assert_allclose(found[3:], want[2:], atol=1e-5)
    ids, logprobs = top_of(answer.topk_prompt_logprobs)
    assert (logprobs[:3] == scores.EMPTY).all() and (ids[:3] == 0).all() and (logprobs[3:] > scores.EMPTY).all()
    for wrong in ({"prompt_logprobs_last_n": 2}, {"prompt_logprobs": True, "prompt_logprobs_last_n": 5}):
        assert "prompt_logprobs_last_n" in ask(**wrong)


def test_what_cannot_be_had_is_named(ask: Any) -> None:
    assert "record_stability_info" in ask(record_stability_info=True)
    for name in ("topk_prompt_logprobs", "topk_sample_logprobs", "prompt_alt_tokens_k"):
        said = ask(**{name: 1025})
        assert name in said and "1024" in said, "the client's own name of it"
    image = {"type": "image", "data": "", "format": "png", "expected_tokens": 4}
    assert "image is not offered" in ask(prompt={"chunks": [image]})
    long = {"chunks": [{"type": "encoded_text", "tokens": PROMPT * 4000}]}
    assert "MB are allowed" in ask(prompt=long, topk_prompt_logprobs=1000), "no memory is set aside for it"


@pytest.mark.parametrize(
    ("params", "named"),
    [
        ({"learning_rate": -0.1}, "learning_rate"),
        ({"learning_rate": None}, "learning_rate"),
        ({"learning_rate": float("nan")}, "learning_rate"),
        ({"learning_rate": float("inf")}, "learning_rate"),
        ({"beta1": 1.0}, "betas"),
        ({"beta2": -0.5}, "betas"),
        ({"eps": -1e-8}, "eps"),
        ({"weight_decay": -1.0}, "weight_decay"),
    ],
    ids=str,
)
def test_a_step_with_impossible_numbers_fails_and_changes_nothing(
    serve: Callable[..., Any], recipe: dict[str, Any], stepper: Any, params: dict[str, Any], named: str
) -> None:
    said = stepper(params)
    assert said["category"] == "user" and named in said["error"], said


@pytest.fixture(scope="module")
def stepper(serve: Callable[..., Any], recipe: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Sends `optim_step` of one model; gives its result."""
    url = f"{serve(Settings(tmp_path_factory.mktemp('steps'), {'tiny': recipe}, keyless=True), faces=('tinker',)).url}"
    count = iter(range(1, 100))

    def post(path: str, body: Any) -> Any:
        content = json.dumps(body)  # with NaN, as the client writes it
        answer = httpx.post(f"{url}/api/v1/{path}", content=content, timeout=60)
        assert answer.status_code == 200, answer.text
        return answer.json()

    session = post("create_session", {})["session_id"]
    body = {"session_id": session, "model_seq_id": 0, "base_model": "tiny", "lora_config": {"rank": 4}}
    model = post("create_model", body)["model_id"]

    def step(params: dict[str, Any]) -> Any:
        sent = post("optim_step", {"model_id": model, "seq_id": next(count), "adam_params": params})
        return post("retrieve_future", {"request_id": sent["request_id"]})

    return step
