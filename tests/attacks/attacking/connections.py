"""What comes before a request is whole: connections, heads and bodies that are slow, too many, too long or cut."""

from __future__ import annotations

import json
import socket
import time
from contextlib import suppress
from functools import partial

from attacking.ground import ROW, Ground, attack

LASTS = 4.0
"""Seconds of an attack that goes on until it is ended."""


def _status(found: bytes) -> int:
    return int(found[9:12]) if found[9:12].isdigit() else 0


@attack("1,300 connections that stay silent; the server may have 1,024 descriptors", short=True)
def silent_connections(g: Ground) -> str:
    with g.connections(1300) as opened:
        time.sleep(LASTS)
        return f"{len(opened)} opened"


@attack("200 connections that send their head a byte at a time", short=True)
def slow_heads(g: Ground) -> str:
    with g.connections(200) as opened:
        end = time.monotonic() + LASTS
        sent = 0
        while time.monotonic() < end:
            for one in opened:
                with suppress(OSError):
                    one.send(b"GET / HTTP/1.1\r\n"[sent % 16 : sent % 16 + 1])
            sent += 1
            time.sleep(0.2)
    return f"{sent} bytes each"


@attack("12 bodies of 64 MiB without a valid key", short=True)
def bodies_without_a_key(g: Ground) -> str:
    before = g.server.memory
    head = g.head("POST", "/v1/sessions", f"Content-Length: {2**26}", key="ft_000000000000_nobody")

    def send(_: int) -> int:
        return _status(g.raw(head + b" " * 2**20, seconds=3))

    found = g.side_by_side(12, send)
    assert set(found) <= {401, 0}, found
    grown = g.server.memory - before
    assert grown < 2**28, f"{grown / 2**20:.0f} MiB more"
    return f"{found.count(401)} refused before their bodies were read"


@attack("12 bodies of 64 MiB that come a byte at a time", short=True)
def slow_bodies(g: Ground) -> str:
    head = g.head("POST", "/v1/sessions", f"Content-Length: {2**26}", "Content-Type: application/json")
    with g.connections(12) as opened:
        for one in opened:
            one.sendall(head + b" " * 2**22)
        end = time.monotonic() + LASTS
        while time.monotonic() < end:
            for one in opened:
                with suppress(OSError):
                    one.send(b" ")
            time.sleep(0.3)
    return "let go"


@attack("a body whose length says ten gigabytes")
def a_length_beyond_all(g: Ground) -> str:
    head = g.head("POST", "/v1/sessions", f"Content-Length: {10**10}", "Content-Type: application/json")
    with g.connections(8) as opened:
        sent = 0
        try:
            for one in opened:
                one.sendall(head)
                for _ in range(80):
                    sent += one.send(b" " * 2**20)
        except OSError:
            pass
    return f"cut off after {sent / 2**20:.0f} MiB"


@attack("a body in chunks that does not end")
def endless_chunks(g: Ground) -> str:
    head = g.head("POST", "/v1/sessions", "Transfer-Encoding: chunked", "Content-Type: application/json")
    piece = b"100000\r\n" + b" " * 2**20 + b"\r\n"
    sent = 0
    with g.connections(1) as opened:
        opened[0].settimeout(5)
        try:
            opened[0].sendall(head)
            for _ in range(200):
                opened[0].sendall(piece)
                sent += 1
        except OSError:
            pass
    assert sent < 190, f"{sent} MiB were taken"
    return f"cut off after {sent} MiB"


@attack("a chunk whose length is no number, and one of 2^64 bytes")
def odd_chunks(g: Ground) -> str:
    head = g.head("POST", "/v1/sessions", "Transfer-Encoding: chunked")
    found = [_status(g.raw(head + chunk, seconds=2)) for chunk in (b"zz\r\n", b"-1\r\n", b"1" * 100 + b"\r\n")]
    assert all(status in (0, 400, 408) for status in found), found
    return str(found)


@attack("two lengths, and a length together with chunks: a request within a request")
def two_lengths(g: Ground) -> str:
    inner = g.head("GET", "/v1/sessions")
    found = []
    for lines in (
        ("Content-Length: 0", f"Content-Length: {len(inner)}"),
        ("Content-Length: 4", "Transfer-Encoding: chunked"),
    ):
        found.append(g.raw(g.head("POST", "/v1/samplers", *lines) + b"0\r\n\r\n" + inner, seconds=2))
    assert all(_status(one) in (0, 400, 401, 415, 422) for one in found), found
    return str([_status(one) for one in found])


@attack("a head of 20,000 lines, one line of a megabyte, an address of 100,000 letters")
def long_heads(g: Ground) -> str:
    lines = [f"X-{n}: {n}" for n in range(20000)]
    tried = [
        g.head("GET", "/v1/sessions", *lines), g.head("GET", "/v1/sessions", "X-A: " + "b" * 2**20),
        g.head("GET", "/v1/sessions?" + "c" * 10**5), g.head("GET", "/v1/sessions", key="k" * 10**5),
    ]  # fmt: skip
    found = [_status(g.raw(one, seconds=2)) for one in tried]
    assert not any(status >= 500 for status in found), found
    return str(found)


@attack("5,000 requests on one connection, none of whose answers is read")
def many_on_one_connection(g: Ground) -> str:
    one = g.head("GET", "/v1/models")
    with g.connections(1) as opened:
        opened[0].settimeout(LASTS)
        sent = 0
        try:
            for _ in range(50):
                opened[0].sendall(one * 100)
                sent += 100
        except OSError:
            pass
        time.sleep(1)
    return f"{sent} sent"


@attack("40 answers of a megabyte that nobody reads")
def answers_that_nobody_reads(g: Ground) -> str:
    with g.a_model() as model:
        row = {"tokens": [5] * 1024, "targets": [6] * 1024}
        made = g.ended(g.post(f"/v1/sessions/{model}/forward", {"data": [row] * 32, "returns": ["logprobs", "hidden"]}))
        head = g.head("GET", f"/v1/calls/{made['id']}")
        with g.connections(40) as opened:
            for one in opened:
                one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                one.sendall(head)
            time.sleep(LASTS)
    return str(made["state"])


@attack(
    "a `forward` of the Tinker wire that is cut by two bytes, and by half: no other operation may come of it",
    short=True,
)
def cut_uploads(g: Ground) -> str:
    from tinker.proto import tinker_public_pb2 as proto

    model = g.wire_model()
    message = proto.ForwardBackwardRequest(model_id=model, seq_id=1, loss_fn="cross_entropy")
    datum = message.data.add()
    datum.model_input.add().encoded_text.tokens = b"\x05\0\0\0" * 4
    tensor = datum.loss_fn_inputs["target_tokens"]
    tensor.dtype, tensor.dense = proto.DTYPE_INT64, b"\x06" + b"\0" * 31
    content = message.SerializeToString()
    for less in (2, len(content) // 2, len(content)):
        head = g.head(
            "POST",
            "/api/v1/forward_backward",
            f"Content-Length: {len(content)}",
            "Content-Type: application/x-protobuf",
        )
        with g.connections(1) as opened:
            opened[0].sendall(head + content[: len(content) - less])
    time.sleep(0.5)
    found = g.get(f"/v1/sessions/{model}").json()
    assert found["next_seq"] == 1, f"a cut request was taken: {found}"
    return "none was taken"


@attack("a `step` whose JSON is cut")
def cut_json(g: Ground) -> str:
    with g.a_model() as model:
        content = json.dumps({"data": [ROW] * 50, "loss": "cross_entropy"}).encode()
        head = g.head(
            "POST", f"/v1/sessions/{model}/forward_backward", f"Content-Length: {len(content)}",
            "Content-Type: application/json",
        )  # fmt: skip
        for less in (1, 100, len(content) - 1):
            with g.connections(1) as opened:
                opened[0].sendall(head + content[:-less])
        time.sleep(0.5)
        assert g.get(f"/v1/sessions/{model}").json()["next_seq"] == 1
    return "none was taken"


@attack("200 requests that announce a body, ask whether to send it, and do not")
def promised_bodies(g: Ground) -> str:
    head = g.head("POST", "/v1/sessions", "Content-Length: 1000000", "Expect: 100-continue")
    with g.connections(200) as opened:
        for one in opened:
            one.sendall(head)
        time.sleep(LASTS)
    return "let go"


@attack("methods and protocols that do not exist: BREW, TRACE, CONNECT, HTTP/0.9, a WebSocket, TLS, noise")
def odd_protocols(g: Ground) -> str:
    websocket = ("Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: AAAA")
    tried = [
        g.head("BREW", "/v1/sessions"), g.head("TRACE", "/v1/sessions"), g.head("CONNECT", "example.org:443"),
        b"GET /\r\n\r\n", g.head("GET", "/v1/sessions", *websocket), b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03",
        bytes(range(256)) * 40, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\r\n" * 1000, b"\0" * 10**5,
    ]  # fmt: skip
    found = [_status(g.raw(one, seconds=1)) for one in tried]
    assert not any(status >= 500 for status in found), found
    return str(found)


@attack("2,000 wrong keys, or as many as are answered in 15 s, and what they leave in log and record", short=True)
def wrong_keys(g: Ground) -> str:
    log, record = g.server.log, g.server.folder / "audit.jsonl"
    before = log.stat().st_size, record.stat().st_size

    def guess(n: int) -> int:
        return g.get("/v1/sessions", key=f"ft_{n:012x}_{n:064x}").status_code

    found = g.flood(2000, guess, workers=4)
    assert set(found) <= {401, 429}, set(found)
    logged, recorded = log.stat().st_size - before[0], record.stat().st_size - before[1]
    assert logged < 2**16, f"the log grew by {logged} bytes"
    assert recorded < 2**20, f"the record grew by {recorded} bytes"
    refused = f"{found.count(401)} refused, {found.count(429)} told to wait"
    return f"{refused}; log {logged} bytes, record {recorded} bytes"


@attack("5,000 heads that are no HTTP, or as many as are answered in 15 s, and what they leave in the log", short=True)
def noise_in_the_log(g: Ground) -> str:
    before = g.server.log.stat().st_size

    def noise(_: int) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", g.server.port), timeout=2) as connection:
                connection.sendall(b"\x00\xff nonsense\r\n\r\n" * 4)
                return bool(connection.recv(100))
        except OSError:
            return False

    found = g.flood(5000, noise, workers=8)
    grown = g.server.log.stat().st_size - before
    assert grown < 2**16, f"the log grew by {grown} bytes"
    return f"{found.count(True)} of {len(found)} answered; the log grew by {grown} bytes"


@attack("`/health`, which needs no key, asked for by 8 workers for 5 s")
def asking_for_health(g: Ground) -> str:
    found = g.flood(10**4, lambda _: g.get("/health", key=None).status_code, workers=8, seconds=5.0)
    assert set(found) == {200}, set(found)
    return f"{len(found)} answered"


@attack("5 keys of one tenant, each of which asks as often as it is answered, for 10 s")
def keys_of_one_tenant(g: Ground) -> str:
    """They share their tenant's rate."""
    names = ("mallory", *(name for name in g.server.keys if name.startswith("mallory:")))
    ask = partial(g.get, "/v1/models")
    found = g.flood(10**5, lambda n: ask(key=names[n % len(names)]).status_code, workers=10, seconds=10.0)
    assert set(found) <= {200, 429}, set(found)
    assert found.count(200) < 2000, f"{found.count(200)} answered: keys have rates of their own"
    return f"{found.count(200)} answered, {found.count(429)} told to wait"


@attack("paths out of the server: dots, encoded dots, zeros, double slashes, whole addresses")
def odd_paths(g: Ground) -> str:
    tried = ("/v1/../../etc/passwd", "/v1/checkpoints/%2e%2e%2f%2e%2e/files", "/v1/sessions/%00", "//etc/passwd",
             "/v1/checkpoints/x/files/..%2f..%2fserver%2fservice.db", "http://example.org/v1/sessions/x",
             "/v1/checkpoints/x/files/..%5c..%5cservice.db", "/v1/sessions/%ff%fe",
             "/v1/calls/" + "a" * 3000)  # fmt: skip
    found = [g.raw(g.head("GET", path, "Connection: close"), seconds=2) for path in tried]
    assert all(_status(one) in (0, 307, 400, 404, 422) for one in found), [_status(one) for one in found]
    assert not any(b"root:" in one or b"SQLite" in one for one in found)
    return str([_status(one) for one in found])
