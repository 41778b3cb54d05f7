"""The registry's pages on the board: read with a client, and clicked in a browser."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from finetooth_hooks import Page, Verdict
from finetooth_registry import board, records
from finetooth_registry.registry import Registry

EVIL = "<script>alert(1)</script>"
Serve = Callable[..., str]
DATA = "d" * 64
POLICY = """
data: {customer_data: false}
channels:
  production: {gates: [small]}
"""


class Small:
    """A gate: the loss is below 2."""

    def judge(self, candidate: Any, predecessor: Any) -> Verdict:
        loss = candidate.metrics["loss"]
        return Verdict(loss < 2, f"loss {loss} {EVIL}", {"loss": loss})


class Context:
    """A catalog with the registry's pages, and a gate."""

    def __init__(self) -> None:
        self.catalog = self
        self._entry = Page(name="registry", build="finetooth_registry.board:RegistryPages", title="Registry")

    def all(self, kind: str) -> Any:
        return (SimpleNamespace(entry=self._entry, distribution="finetooth-registry"),) if kind == "page" else ()

    def build(self, kind: str, pick: Any, *, setting: str = "") -> Any:
        return board.RegistryPages(self) if kind == "page" else Small()  # type: ignore[arg-type]


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    """A registry with `bot@v0`, `bot@v1`, which was trained over it, and `bot@v2`, which the gate does not pass."""
    made = Registry.create(tmp_path / "kept")
    (made.folder / "policy.yaml").write_text(POLICY, encoding="utf-8")
    monkeypatch.setenv("FT_REGISTRY", str(made.folder))
    made.trust("ci", records.make_key(tmp_path / "ci.pem"))
    signer = records.load_signer(tmp_path / "ci.pem")
    parents: list[dict[str, Any]] = []
    for loss in (1.5, 1.0, 2.5):
        (tmp_path / "weights").write_text(f"{loss}", encoding="utf-8")
        about = {
            "base_digest": "b" * 64, "model": f"tiny {EVIL}", "base": {f"{EVIL}.bin": "e" * 64},
            "data": {"data.train.sha256": DATA}, "recipe_sha256": "c" * 64, "method": EVIL,
            "classification": {"customer_data": False, "licence": EVIL}, "parents": parents,
        }  # fmt: skip
        version = made.add("bot", {"artifact/weights": tmp_path / "weights"}, about, signer, metrics={"loss": loss})
        said = records.digest(made.record(version))
        parents = [{"name": "bot", "number": version.number, "statement": said}] if version.number == 0 else []
    answer = {"id": EVIL, "prompt": EVIL, "expected": EVIL, "answer": EVIL, "score": 1.0}
    made.hold(made.version("bot@v2"), "production", EVIL)
    made.measure(made.version("bot@v1"), {"exact/accuracy": 1.0}, {EVIL: [answer]})
    with pytest.raises(Exception, match="customer"):
        made.admit("bot", {"classification": {"customer_data": True}, "run": EVIL})
    return made


PATHS = (
    "/", "/log", "/versions/bot/1", "/versions/bot/1/verified", "/compare?v=bot@v0&v=bot@v1", "/decisions",
)  # fmt: skip


def test_whatever_a_registry_holds_is_text(serve: Serve, registry: Registry) -> None:
    address = serve(context=Context())
    seen = ""
    for path in PATHS:
        answer = httpx.get(f"{address}/registry{path}")
        assert answer.status_code == 200 and EVIL not in answer.text, path
        assert "script-src 'self'" in answer.headers["content-security-policy"]
        seen += answer.text
    for part in (DATA, "e" * 64, "the policy accepts no customer data", "Every link holds", "&lt;script&gt;"):
        assert part in seen, part


@pytest.mark.parametrize("path", ["/versions/bot/9", "/versions/other/0", "/compare?v=bot@v0", "/compare?v=a&v=b"])
def test_what_is_not_there_is_said(serve: Serve, registry: Registry, path: str) -> None:
    answer = httpx.get(f"{serve(context=Context())}/registry{path}")
    assert answer.status_code == 400 and 'role="alert"' in answer.text


def test_no_registry_is_said_with_what_makes_one(serve: Serve) -> None:
    answer = httpx.get(f"{serve(context=Context())}/registry/")
    assert answer.status_code == 400 and "ft registry init" in answer.text


def test_curves_show_the_kept_step_and_the_size_of_the_corpus(serve: Serve, registry: Registry, tmp_path: Path) -> None:
    """What is drawn is counted and placed: three curves, a ring at each kept step, one point for each corpus."""
    for rows, kept in ((700, 20), (1400, 20), (2800, 40)):
        losses = {step: 1.0 - rows / 10_000 + abs(step - 20) / 100 for step in (10, 20, 30, 40)}
        lines = [{"event": "evaluation", "name": "loss", "step": n, "metrics": {"loss": v}} for n, v in losses.items()]
        (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        result = {"status": "done", "artifact_step": kept, "rows": [{"split": "train", "used": rows}]}
        (tmp_path / "result.json").write_text(json.dumps(result))
        files = {name: tmp_path / name for name in ("metrics.jsonl", "result.json")}
        registry.add("curvy", files, {"classification": {"customer_data": False}}, None, metrics={})
    page = f"{serve(context=Context())}/registry/curves/curvy"
    text = httpx.get(page).text
    by_step, by_corpus = re.findall(r"<svg.*?</svg>", text)
    curves = [
        [tuple(map(float, p.split(","))) for p in line.split()] for line in re.findall(r'points="([^"]+)"', by_step)
    ]
    rings = {(float(x), float(y)) for x, y in re.findall(r'cx="([0-9.]+)" cy="([0-9.]+)" r="5"', by_step)}
    assert rings == {curves[0][1], curves[1][1], curves[2][3]}  # places of the kept steps, the lowest but for the last
    assert [max(curve, key=lambda point: point[1]) for curve in curves] == [curve[1] for curve in curves]
    (corpora,) = re.findall(r'points="([^"]+)"', by_corpus)
    xs = [float(point.split(",")[0]) for point in corpora.split()]
    assert (xs[1] - xs[0]) / (xs[2] - xs[0]) == pytest.approx(1 / 3, abs=0.01)  # 700, 1400 and 2800 rows
    assert text.count("(not the lowest)") == 1 and "2800" in text
    refused = httpx.get(page, params={"metric": EVIL})
    assert refused.status_code == 400 and EVIL not in refused.text and "they measured eval/loss" in refused.text


def test_decisions_are_listed_with_their_signature(serve: Serve, registry: Registry, tmp_path: Path) -> None:
    signer = records.load_signer(tmp_path / "ci.pem")
    registry.decide(registry.version("bot@v0"), "production", {"1 small": Verdict(True, "good")}, None, signer)
    text = httpx.get(f"{serve(context=Context())}/registry/decisions").text
    promoted, held = (
        text.index("PROMOTE, signed by ci"),
        text.index("HOLD: &lt;script&gt;alert(1)&lt;/script&gt;, not signed"),
    )
    assert promoted < held and "1 gates" in text and "good" in text


def test_forms_of_other_pages_decide_nothing(serve: Serve, registry: Registry) -> None:
    address = serve(context=Context())
    found = re.search(r'name="token" value="([^"]+)"', httpx.get(f"{address}/registry/versions/bot/1").text)
    assert found is not None
    events = len(registry.events())
    for path in (
        "versions/bot/1/promote",
        "versions/bot/1/hold",
        "versions/bot/1/approve",
        "versions/bot/1/revert",
        "rollback",
    ):
        url, form = f"{address}/registry/{path}", {"channel": "production", "why": "x", "model": "bot"}
        foreign = {"origin": "http://evil.example"}
        assert httpx.post(url, data={**form, "token": found[1]}, headers=foreign).status_code == 403
        assert httpx.post(url, data={**form, "token": "x"}, headers={"origin": address}).status_code == 400
        assert httpx.get(url).status_code == 405
    assert len(registry.events()) == events


def test_what_is_decided_by_hand_is_signed_with_the_key_of_the_board(
    serve: Serve, registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FT_REGISTRY_KEY", str(tmp_path / "ci.pem"))
    address = serve(context=Context())
    page = f"{address}/registry/versions/bot/1"
    found = re.search(r'name="token" value="([^"]+)"', httpx.get(page).text)
    assert found is not None
    for path, said in (("hold", "HOLD: x"), ("lift", "LIFT"), ("revert", "REJECT: x")):
        form = {"channel": "production", "why": "x", "token": found[1]}
        assert httpx.post(f"{page}/{path}", data=form, headers={"origin": address}).status_code == 303
        assert f"{said}, signed by ci" in httpx.get(f"{page}/verified").text


def test_a_changed_log_is_said(serve: Serve, registry: Registry) -> None:
    with registry._changing() as connection:
        connection.exec_driver_sql("UPDATE events SET at = 'never' WHERE sequence = 2")
    address = f"{serve(context=Context())}/registry"
    assert "the log was changed at event 2" in httpx.get(f"{address}/log").text
    assert "A link does not hold" in httpx.get(f"{address}/versions/bot/0/verified").text


@pytest.mark.slow
def test_a_version_is_promoted_held_and_rolled_back(
    serve: Serve, registry: Registry, tab: Any, accessible: Callable[[Any], None], tmp_path: Path
) -> None:
    tab.goto(serve(context=Context()))
    tab.get_by_role("link", name="Registry").click()
    accessible(tab)

    def press(version: str, form: str, button: str, **fields: str) -> None:
        tab.get_by_role("link", name=version, exact=True).first.click()
        tab.get_by_text(form, exact=True).click()
        for label, value in fields.items():
            tab.get_by_label(label).last.fill(value)
        tab.get_by_role("button", name=button).click()
        tab.get_by_role("heading", name=version, exact=True).wait_for()

    for version in ("bot@v0", "bot@v1"):
        press(version, "Promote", "Ask the gates")
        tab.get_by_role("heading", name=f"PROMOTE: {version} to production").wait_for()
        accessible(tab)
        tab.get_by_role("link", name="All versions").click()
    press("bot@v2", "Promote", "Ask the gates")
    tab.get_by_role("heading", name="REJECT: bot@v2").wait_for()
    assert "loss 2.5 <script>" in tab.inner_text("main"), "the gate's reason is text"
    tab.get_by_role("link", name="All versions").click()
    tab.get_by_text("Roll bot in production back").click()
    tab.get_by_label("Why").fill("complaints")
    tab.get_by_role("button", name="Roll back").click()
    tab.get_by_role("heading", name="Registry").wait_for()
    assert registry.version("bot@production").number == 0

    press("bot@v1", "Hold", "Hold back", **{"Why it is held back": "not yet"})
    tab.get_by_text("Held back from production by hand: not yet").wait_for()
    tab.get_by_text("Promote", exact=True).click()
    tab.get_by_role("button", name="Ask the gates").click()
    tab.get_by_role("heading", name="HOLD: bot@v1").wait_for()
    tab.get_by_role("button", name="Lift the hold on production").click()
    tab.get_by_text("Held back from production").wait_for(state="detached")
    records.make_key(tmp_path / "boss.pem")
    tab.get_by_text("Approve", exact=True).click()
    tab.get_by_label("File of the private key").fill(str(tmp_path / "boss.pem"))
    tab.get_by_role("button", name="Sign").click()
    tab.get_by_role("heading", name="Decisions").wait_for()
    accessible(tab)
    kinds = [event.kind for event in registry.events()]
    assert kinds[-6:] == ["decided", "rolled back", "held", "decided", "hold lifted", "signed"]


def test_lineage_is_opened_to_the_raw_data(
    serve: Serve, registry: Registry, tab: Any, accessible: Callable[[Any], None]
) -> None:
    tab.goto(f"{serve(context=Context())}/registry/versions/bot/1")
    drawn = tab.locator("svg").text_content()
    assert "bot@v0" in drawn and f"data {DATA[:12]}" in drawn
    assert not tab.get_by_text(DATA).first.is_visible()
    for summary in ("version: bot@v1", "version: bot@v0"):
        tab.get_by_text(summary, exact=True).click()
    tab.get_by_text("data: data.train").last.click()
    assert tab.get_by_text(DATA).last.is_visible()
    accessible(tab)
    tab.locator("svg a", has_text="bot@v0").click()
    tab.get_by_role("heading", name="bot@v0", exact=True).wait_for()
    tab.goto(f"{tab.url.rpartition('/')[0]}/1/verified")
    accessible(tab)
    assert tab.locator("tbody tr").count() > 5
