"""Every route by every caller who may not use it: without a key, with one that has ended, another tenant's, and one
that lacks the scope.

The routes are those of the OpenAPI document, of the Tinker wire's router and of the face for OpenAI's protocol, so a
new one is in here by itself: it fails until this file says what a request to it holds.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import finetooth
import httpx2 as httpx
import pytest
from finetooth_hooks import Datum, FaceRoute, Sampling
from finetooth_server import keys as keys_module
from finetooth_server.faces import load
from finetooth_server.keys import SCOPES
from finetooth_server.scopes import NEEDED
from finetooth_server.settings import Limits, Settings
from finetooth_server.tinker.refusals import REFUSALS

OPEN = {("GET", "/health"), ("GET", "/api/v1/healthz")}
"""What anybody may ask."""

WHOEVER = {
    ("GET", "/v1/models"),
    ("GET", "/v1/limits"),
    ("POST", "/v1/sessions"),
    ("POST", "/v1/samplers"),
    ("GET", "/metrics"),
    ("POST", "/api/v1/client/config"),
    ("POST", "/api/v1/client/dynamic_config"),
    ("POST", "/api/v1/telemetry"),
    ("POST", "/api/v1/create_session"),
    ("GET", "/api/v1/get_server_capabilities"),
    ("GET", "/api/v1/sessions"),
    ("GET", "/openai/v1/models"),
}
"""What any tenant may do, since it names nothing that belongs to one."""

REFUSED = {(one.method, f"/api/v1{one.path}") for one in REFUSALS}
"""What nobody may do here."""

LISTS = {
    ("GET", "/v1/sessions"),
    ("GET", "/v1/checkpoints"),
    ("GET", "/api/v1/training_runs"),
    ("GET", "/api/v1/checkpoints"),
    ("GET", "/api/v1/billing/usage/checkpoints/current"),
    ("POST", "/api/v1/sessions/search"),
}
"""What answers with the caller's own things: another tenant gets an empty list."""


@dataclass(frozen=True)
class Route:
    """One operation of the server.

    Attributes:
        path: with the names of its parameters in braces.
        query: names of parameters in the query that could name somebody's thing.
    """

    method: str
    path: str
    query: tuple[str, ...] = ()

    @property
    def key(self) -> tuple[str, str]:
        return self.method, self.path

    def __str__(self) -> str:
        return f"{self.method} {self.path}"


@dataclass(frozen=True)
class Owned:
    """What the first tenant has."""

    session: str
    call: str
    checkpoint: str
    sampler: str
    wire_session: str = ""
    wire_model: str = ""
    wire_sampler: str = ""

    @property
    def ids(self) -> tuple[str, ...]:
        everything = (getattr(self, name) for name in self.__dataclass_fields__)
        return tuple(id_ for id_ in everything if id_)


UNKNOWN = Owned(*(f"{n:032x}" for n in range(1, 6)), f"{5:032x}:train:0", f"{5:032x}:sample:0")
"""Ids that nobody has."""

TOKENS = {"type": "encoded_text", "tokens": [5, 6, 7]}


def bodies(owned: Owned) -> Mapping[str, Any]:
    """A valid body for each route that takes one, which names what is `owned`; bytes go as they are."""
    datum = {"tokens": [5, 6, 7], "targets": [6, 7, 8]}
    path = f"tinker://{owned.wire_model}/weights/kept"
    promise = {"model_id": owned.wire_model}
    return {
        "/v1/sessions": {"base": "tiny", "checkpoint": owned.checkpoint},
        "/v1/sessions/{session}/forward": {"data": [datum]},
        "/v1/sessions/{session}/backward": {"handle": 1},
        "/v1/sessions/{session}/forward_backward": {"data": [datum], "loss": "cross_entropy"},
        "/v1/sessions/{session}/step": {},
        "/v1/sessions/{session}/zero_grad": {},
        "/v1/sessions/{session}/generate": {"prompts": [[5]], "sampling": {"max_tokens": 1}},
        "/v1/sessions/{session}/logprobs": {"data": [datum]},
        "/v1/sessions/{session}/save": {"name": "stolen"},
        "/v1/sessions/{session}/load": {"checkpoint": owned.checkpoint},
        "/v1/samplers": {"checkpoint": owned.checkpoint},
        "/v1/samplers/{sampler}/generate": {"prompt": [5], "sampling": {"max_tokens": 1}},
        "/api/v1/client/config": {},
        "/api/v1/client/dynamic_config": {},
        "/api/v1/telemetry": {},
        "/api/v1/create_session": {},
        "/api/v1/session_heartbeat": {"session_id": owned.wire_session},
        "/api/v1/sessions/{id}/finish": {},
        "/api/v1/create_model": {
            "session_id": owned.wire_session, "model_seq_id": 7, "base_model": "tiny", "lora_config": {"rank": 4},
        },
        "/api/v1/get_info": promise,
        "/api/v1/weights_info": {"tinker_path": path},
        "/api/v1/optim_step": {**promise, "adam_params": {"learning_rate": 1e-3}},
        "/api/v1/save_weights": {**promise, "path": "stolen"},
        "/api/v1/save_weights_for_sampler": {**promise, "path": "stolen"},
        "/api/v1/load_weights": {**promise, "path": path},
        "/api/v1/create_sampling_session": {
            "session_id": owned.wire_session, "sampling_session_seq_id": 7, "base_model": "tiny",
        },
        "/api/v1/join_sampling_session": {"sampling_session_id": owned.wire_sampler},
        "/api/v1/asample": {
            "sampling_session_id": owned.wire_sampler, "prompt": {"chunks": [TOKENS]},
            "sampling_params": {"max_tokens": 1},
        },
        "/api/v1/save_weights_external": {**promise, "path": "stolen"},
        "/api/v1/copy_weights": {"source_path": path},
        "/api/v1/sessions/search": {"session_id": owned.wire_session},
        "/api/v1/training_runs/{id}/checkpoints/{kind}/{checkpoint}/ttl": {"ttl_seconds": 7200},
        "/api/v1/training_runs/{id}/checkpoints/{kind}/{checkpoint}/publish": {},
        **{f"/api/v1{one.path}": {} for one in REFUSALS},
        "/api/v1/forward_backward": _protobuf(owned.wire_model),
        "/api/v1/retrieve_future": {"request_id": owned.call},
        "/api/v1/cancel_future": {"request_id": owned.call},
        "/openai/v1/chat/completions": {
            "model": owned.checkpoint, "messages": [{"role": "user", "content": "a"}], "max_tokens": 1,
        },
        "/openai/v1/completions": {"model": owned.checkpoint, "prompt": [5], "max_tokens": 1},
        "/openai/v1/responses": {"model": owned.checkpoint, "input": "Hi", "max_output_tokens": 1},
        "/openai/v1/embeddings": {"model": owned.checkpoint, "input": [5]},
    }  # fmt: skip


def _protobuf(model: str) -> bytes:
    """The one message that is no JSON."""
    if find_spec("tinker") is None:
        return b""
    from tinker.proto import tinker_public_pb2 as proto

    message = proto.ForwardBackwardRequest(model_id=model, seq_id=50, loss_fn="cross_entropy")
    content: bytes = message.SerializeToString()
    return content


def in_path(route: Route, owned: Owned) -> str:
    """The route's path with ids in it."""
    of = {
        "/v1/sessions/{session}": ("session", owned.session),
        "/v1/samplers/{sampler}": ("sampler", owned.sampler),
        "/v1/calls/{id}": ("id", owned.call),
        "/v1/checkpoints/{id}": ("id", owned.checkpoint),
        "/api/v1/samplers/{id}": ("id", owned.wire_sampler),
        "/api/v1/training_runs/{id}": ("id", owned.wire_model),
        "/api/v1/sessions/{id}": ("id", owned.wire_session),
        "/api/v1/checkpoints/{id}": ("id", owned.checkpoint),
        "/openai/v1/models/{model:path}": ("model:path", owned.checkpoint),
    }
    path = route.path.replace("{name}", "adapter_config.json").replace("{name:path}", "adapter_config.json")
    kind = "external_weights" if path.endswith("_urls") else "weights"
    path = path.replace("{kind}", kind).replace("{checkpoint}", "kept")
    for prefix, (name, id_) in of.items():
        if route.path.startswith(prefix):
            path = path.replace(f"{{{name}}}", id_)
    assert "{" not in path, f"{route}: this test does not know whose things its path names"
    return path


class Matrix:
    """A server with two tenants, and requests to every route."""

    def __init__(self, server: Any, owned: Owned, keys: Mapping[str, str | None]) -> None:
        self.server, self.owned, self.keys = server, owned, keys
        self._client = httpx.Client(timeout=30)  # one for all: to make one reads every certificate of the machine
        self.routes = list(_routes(server, str(keys["ours"])))

    def send(self, route: Route, key: str | None, owned: Owned) -> httpx.Response:
        """A valid request, but for whose things it names."""
        headers = {} if key is None else {"X-API-Key": key}
        more: dict[str, Any] = {"params": {"wait": 0} if "wait" in route.query else {}}
        if "session" in route.query:
            more["params"]["session"] = owned.session
        if route.method in ("POST", "PUT", "PATCH"):
            known = bodies(owned)
            assert route.path in known, f"{route}: this test does not know what it takes"
            body = known[route.path]
            more |= {"content": body} if isinstance(body, bytes) else {"json": body}
        return self._client.request(route.method, self.server.url + in_path(route, owned), headers=headers, **more)


def _routes(server: Any, key: str) -> Iterator[Route]:
    document = httpx.get(f"{server.url}/openapi.json", headers={"X-API-Key": key}, timeout=30).json()
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            query = tuple(one["name"] for one in operation.get("parameters", ()) if one["in"] == "query")
            yield Route(method.upper(), path, query)
    if find_spec("tinker") is not None:
        from finetooth_server.tinker.routes import tinker_router

        for one in tinker_router().routes:
            for method in sorted(one.methods - {"HEAD"}):  # type: ignore[attr-defined]
                yield Route(method, one.path)  # type: ignore[attr-defined]
    for one in _openai_routes(server):
        yield Route(one.method, OPENAI + one.path)


def _openai_routes(server: Any) -> tuple[FaceRoute, ...]:
    return load(server.service.context, "openai").routes


OPENAI = "/openai/v1"
"""Where that face is beside `api`."""


@pytest.fixture(scope="module")
def matrix(serve: Any, recipe: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Matrix:
    tinker = find_spec("tinker") is not None
    limits = Limits(strangers=10**6)  # all that is refused here comes from one address
    settings = Settings(tmp_path_factory.mktemp("access"), {"tiny": recipe}, limits=limits)
    server = serve(settings, faces=("api", *(("tinker",) if tinker else ()), "openai"))
    made = server.service.keys
    keys: dict[str, str | None] = {
        name: made.create(tenant, ("train", "sample", "read", "download"))
        for name, tenant in (("ours", "vision"), ("other", "search"))
    }
    keys |= {"none": None, "no key of ours": "ft_0123456789ab_" + "0" * 64}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(keys_module, "now", lambda: 1.0)
        keys["expired"] = made.create("vision", days=1)
    keys["revoked"] = made.create("vision")
    made.revoke(str(keys["revoked"]).split("_")[1])
    with finetooth.Client(server.url, str(keys["ours"]), patience=60) as client:
        session = client.session("tiny")
        session.forward_backward([Datum.from_tokens(range(5, 14))])
        session.step()
        checkpoint = session.save("kept")
        sampler = client.sampler("tiny")
        sampler.generate([5, 6], Sampling(max_tokens=1))
        owned = Owned(session.id, "", checkpoint, sampler.id)
    calls = server.service.log.between(session.id, 0, 0)
    owned = Owned(session.id, calls[0].id, checkpoint, sampler.id, *(_on_the_wire(server, keys) if tinker else ()))
    return Matrix(server, owned, keys)


def _on_the_wire(server: Any, keys: Mapping[str, str | None]) -> tuple[str, str, str]:
    """A session, a model with a checkpoint and a sampler, made by the wire's own routes."""

    def post(path: str, body: Any) -> Any:
        headers = {"X-API-Key": str(keys["ours"])}
        answer = httpx.post(f"{server.url}/api/v1/{path}", json=body, headers=headers, timeout=60)
        assert answer.status_code == 200, answer.text
        return answer.json()

    session = post("create_session", {})["session_id"]
    made = post(
        "create_model",
        {"session_id": session, "model_seq_id": 0, "base_model": "tiny", "lora_config": {"rank": 4}},
    )
    model = made["model_id"]
    saved = post("save_weights", {"model_id": model, "seq_id": 1, "path": "kept"})
    given = post("save_weights_external", {"model_id": model, "seq_id": 2, "path": "kept"})
    for promise in (made, saved, given):
        answer = post("retrieve_future", {"request_id": promise["request_id"]})
        assert "error" not in answer, answer
    opened = {"session_id": session, "sampling_session_seq_id": 0, "base_model": "tiny"}
    return session, model, post("create_sampling_session", opened)["sampling_session_id"]


def plain(answer: httpx.Response, owned: Owned) -> str:
    """The answer without the ids that the request brought."""
    text = answer.text
    for id_ in sorted(owned.ids, key=len, reverse=True):
        text = text.replace(id_, "ID")
    return text


def test_no_key_opens_nothing(matrix: Matrix) -> None:
    for route in matrix.routes:
        if route.key in OPEN:
            continue
        answers = {
            name: matrix.send(route, matrix.keys[name], matrix.owned)
            for name in ("none", "no key of ours", "expired", "revoked")
        }
        assert {one.status_code for one in answers.values()} == {401}, (str(route), answers)
        assert len({one.text for one in answers.values()}) == 1, f"{route}: the answer says why a key is not valid"


def test_another_tenant_sees_and_changes_nothing(matrix: Matrix) -> None:
    before = httpx.get(
        f"{matrix.server.url}/v1/sessions/{matrix.owned.session}",
        headers={"X-API-Key": str(matrix.keys["ours"])}, timeout=30,
    ).json()  # fmt: skip
    for route in matrix.routes:
        answer = matrix.send(route, matrix.keys["other"], matrix.owned)
        if route.key in REFUSED:
            assert answer.status_code in (400, 404) and "not offered" in answer.text, (str(route), answer.text)
        elif route.key in OPEN or (route.key in WHOEVER and not _names_a_thing(route)):
            assert answer.status_code in (200, 202), (str(route), answer.text)
        elif route.key in LISTS:
            assert not _entries(answer.json()), f"{route}: {answer.text}"
        else:
            nobody = matrix.send(route, matrix.keys["other"], UNKNOWN)
            assert answer.status_code == nobody.status_code == 404, (str(route), answer.status_code, answer.text)
            assert plain(answer, matrix.owned) == plain(nobody, UNKNOWN), f"{route}: the answer says that there is one"
        assert not any(id_ in answer.text for id_ in matrix.owned.ids if id_ not in _sent(route, matrix.owned)), (
            f"{route}: the answer holds an id of the other tenant"
        )
    after = httpx.get(
        f"{matrix.server.url}/v1/sessions/{matrix.owned.session}",
        headers={"X-API-Key": str(matrix.keys["ours"])}, timeout=30,
    ).json()  # fmt: skip
    assert after == before


def test_each_scope_opens_what_is_declared_and_nothing_else(matrix: Matrix) -> None:
    """A key with one scope alone; what it lacks is refused alike, whether there is such a thing or not."""
    made = matrix.server.service.keys
    keys = {scope: made.create("vision", (scope,)) for scope in SCOPES}
    document = httpx.get(f"{matrix.server.url}/openapi.json", headers={"X-API-Key": keys["admin"]}, timeout=30).json()
    known = {**NEEDED, **{(one.method, OPENAI + one.path): one.scopes for one in _openai_routes(matrix.server)}}
    for route in matrix.routes:
        if route.key in OPEN:
            continue
        assert route.key in known, f"{route}: neither finetooth_server.scopes nor its face says which keys it is for"
        needed = known[route.key]
        if route.path in document["paths"]:
            assert document["paths"][route.path][route.method.lower()]["x-scopes"] == list(needed), str(route)
        for scope, key in keys.items():
            answer = matrix.send(route, key, UNKNOWN)
            if not needed or scope in needed or scope == "admin":
                assert answer.status_code != 403, (str(route), scope, answer.text)
                continue
            ours = matrix.send(route, key, matrix.owned)
            assert answer.status_code == ours.status_code == 403, (str(route), scope, answer.status_code, ours.text)
            assert plain(answer, UNKNOWN) == plain(ours, matrix.owned), f"{route}: the refusal says that there is one"
            assert "lacks the scope" in str(answer.json()["error"]), (str(route), answer.text)


def test_its_own_tenant_gets_through(matrix: Matrix) -> None:
    """Else the refusals above would prove nothing: the same requests are valid for whose things they name."""
    order = {  # what ends things comes last, and a checkpoint is made private before it is deleted
        route: (route.method == "DELETE", not route.path.endswith("/publish"), route.path.endswith("/finish"))
        for route in matrix.routes
    }
    for route in sorted(matrix.routes, key=order.__getitem__):
        answer = matrix.send(route, matrix.keys["ours"], matrix.owned)
        if route.key in REFUSED:
            assert answer.status_code in (400, 404) and "not offered" in answer.text, (str(route), answer.text)
            continue
        assert answer.status_code in (200, 202, 204, 408), (str(route), answer.status_code, answer.text)


def _entries(answer: Any) -> list[Any]:
    """What a list holds, on any face."""
    if isinstance(answer, list):
        return answer
    return [entry for value in answer.values() if isinstance(value, list) for entry in value]


def _names_a_thing(route: Route) -> bool:
    body = bodies(UNKNOWN).get(route.path)
    text = json.dumps(body) if not isinstance(body, bytes) else ""
    return any(id_ in text for id_ in UNKNOWN.ids)


def _sent(route: Route, owned: Owned) -> str:
    """What the request itself held."""
    body = bodies(owned).get(route.path)
    return in_path(route, owned) + (body.decode("latin-1") if isinstance(body, bytes) else json.dumps(body))
