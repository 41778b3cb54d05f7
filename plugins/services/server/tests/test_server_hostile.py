"""Hostile input: whatever is sent, no answer is a 5xx, holds a trace, or does not come; and the server goes on."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import finetooth
import httpx2 as httpx
import pytest
from finetooth_server.settings import Limits, Settings
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

OUGHT = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module")
def served(serve: Any, recipe: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    faces = ("api", "tinker") if find_spec("tinker") else ("api",)
    limits = Limits(wait=0.3, tokens=4000, models=10**6, live=2, queued=10**6)
    folder = tmp_path_factory.mktemp("hostile")
    return serve(Settings(folder, {"tiny": recipe}, keyless=True, limits=limits), faces=faces)


def check(answer: Any) -> None:
    assert answer.status_code < 500, (answer.status_code, answer.text[:500])
    assert "Traceback" not in answer.text and ".py" not in answer.text


@pytest.fixture(scope="module")
def session(served: Any) -> str:
    with finetooth.Client(served.url) as client:
        id_: str = client.session("tiny").id
    return id_


@pytest.mark.slow
@pytest.mark.skipif(find_spec("schemathesis") is None, reason="the package schemathesis is not installed")
def test_what_the_openapi_document_allows_and_forbids(served: Any) -> None:
    import schemathesis

    schema = schemathesis.openapi.from_url(f"{served.url}/openapi.json")
    tried = 0
    for operation in schema.get_all_operations():
        strategy = operation.ok().as_strategy()

        @settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
        @given(case=strategy)
        def attack(case: Any) -> None:
            nonlocal tried
            tried += 1
            answer = case.call(timeout=30)
            assert answer.status_code < 500, (case.as_curl_command(), answer.text)

        attack()
    assert tried > 200
    assert httpx.get(f"{served.url}/health").json()["status"] == "ok"


values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
PRIMITIVES = ["forward", "backward", "forward_backward", "step", "generate", "logprobs", "save", "load"]
ROUTES = ["create_session", "create_model", "optim_step", "asample", "save_weights", "save_weights_for_sampler",
          "load_weights", "create_sampling_session", "retrieve_future", "get_info", "weights_info"]  # fmt: skip
NAMES = st.sampled_from(
    ["data", "loss", "handle", "grads", "prompts", "sampling", "tokens", "targets", "settings", "normalizer", "name",
     "checkpoint", "positions", "returns", "role", "seq_id", "model_id", "session_id", "base_model", "path"]
)  # fmt: skip


@pytest.mark.slow
@OUGHT
@given(
    operation=st.sampled_from(PRIMITIVES),
    body=st.dictionaries(NAMES, values, max_size=4),
)
def test_odd_bodies_of_the_primitives(served: Any, session: str, operation: str, body: Any) -> None:
    content = json.dumps(body).encode()
    headers = {"content-type": "application/json"}
    url = f"{served.url}/v1/sessions/{session}/{operation}"
    answer = httpx.post(url, content=content, headers=headers, params={"wait": 5}, timeout=30)
    check(answer)
    if answer.status_code == 200 and answer.json()["state"] == "failed":
        assert answer.json()["error"]["category"] == "user", (operation, body, answer.json())


@pytest.mark.slow
@pytest.mark.skipif(find_spec("tinker") is None, reason="the package tinker is not installed")
@OUGHT
@given(content=st.binary(max_size=200), cut=st.integers(0, 400), flip=st.integers(0, 400))
def test_odd_protobuf(served: Any, content: bytes, cut: int, flip: int) -> None:
    from tinker.proto import tinker_public_pb2 as proto

    message = proto.ForwardBackwardRequest(model_id="x", seq_id=1, loss_fn="cross_entropy")
    datum = message.data.add()
    datum.model_input.add().encoded_text.tokens = b"\x05\0\0\0\x06\0\0\0"
    tensor = datum.loss_fn_inputs["target_tokens"]
    tensor.dtype, tensor.dense = proto.DTYPE_INT64, b"\x05" + b"\0" * 15
    whole = bytearray(message.SerializeToString())
    whole[flip % len(whole)] ^= 0x15
    for body in (content, bytes(whole), bytes(whole[: cut % len(whole)])):
        headers = {"content-type": "application/x-protobuf", "x-api-key": "tml-local"}
        check(httpx.post(f"{served.url}/api/v1/forward_backward", content=body, headers=headers, timeout=30))


@pytest.mark.slow
@pytest.mark.skipif(find_spec("tinker") is None, reason="the package tinker is not installed")
@OUGHT
@given(
    route=st.sampled_from(ROUTES),
    body=st.dictionaries(NAMES, values, max_size=4) | values,
)
def test_odd_json_on_the_tinker_wire(served: Any, route: str, body: Any) -> None:
    content = json.dumps(body).encode()
    check(httpx.post(f"{served.url}/api/v1/{route}", content=content, headers={"x-api-key": "tml-l"}, timeout=30))


@pytest.mark.skipif(find_spec("tinker") is None, reason="the package tinker is not installed")
def test_a_request_with_a_number_is_never_refused(served: Any, ask: SimpleNamespace) -> None:
    """Each takes its place and fails there, and what comes after it is done."""

    def post(route: str, body: Any, **more: Any) -> Any:
        headers = {"x-api-key": "tml-local", **more.pop("headers", {})}
        return httpx.post(f"{served.url}/api/v1/{route}", json=body, headers=headers, timeout=30, **more)

    session = post("create_session", {"tags": [], "sdk_version": "0"}).json()["session_id"]
    lora = {"rank": 2}
    promise = post(
        "create_model", {"session_id": session, "model_seq_id": 0, "base_model": "tiny", "lora_config": lora}
    )
    model = promise.json()["model_id"]
    assert model == f"{session}:train:0"
    odd = [
        ("optim_step", {"adam_params": {"learning_rate": "fast"}}),
        ("optim_step", {}),
        ("save_weights", {"path": "../x"}),
        ("save_weights_for_sampler", {"sampling_session_seq_id": -1}),
        ("load_weights", {"path": "tinker://none/weights/x", "optimizer": True}),
        ("load_weights", {"path": 3, "optimizer": True}),
        ("save_weights", {"path": "good"}),
    ]
    promises = []
    for seq, (route, body) in enumerate(odd, 1):
        answer = post(route, {"model_id": model, "seq_id": seq, **body})
        assert answer.status_code == 200, (route, body, answer.text)
        promises.append(answer.json()["request_id"])
    for place, promise in enumerate(promises):
        for _ in range(100):
            answer = post("retrieve_future", {"request_id": promise})
            if answer.status_code != 408:
                break
        found = answer.json()
        assert answer.status_code == 200 and ("error" in found) == (place < len(odd) - 1), (odd[place], found)
    assert found["path"] == f"tinker://{model}/weights/good"
    assert Path(served.service.settings.folder).exists()
