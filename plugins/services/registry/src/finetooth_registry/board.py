"""The registry's pages on the board: versions and channels, lineage, evaluations, gates, decisions, the log."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from finetooth_hooks import Asgi, CommandContext, PageService, UserError
from finetooth_toolbox.text.controls import escape_controls
from jinja2 import Environment, PackageLoader
from markupsafe import Markup
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route, Router

from finetooth_registry import decisions, records, releasing
from finetooth_registry.anywhere import VARIABLE, AnyRegistry, Version, chained
from finetooth_registry.curves import curves, pictures
from finetooth_registry.lineage import drawing, lineage
from finetooth_registry.remote import open_registry
from finetooth_registry.verified import NOTHING
from finetooth_registry.verifying import verify_version

MOST, MOST_READ = 200, 50
"""Versions and events per page; fewer if a file of each is read."""
COMPARED = 5
"""Most versions in a comparison."""
DECIDED = (*decisions.KINDS, "signed", "watched")
"""Events of a version's page."""
Html = tuple[str, str]
"""Title and body of a page."""


class RegistryPages:
    """See `finetooth_hooks.faces.Page`. It reads the registry that FT_REGISTRY names, by default `registry`, at each
    request."""

    def __init__(self, context: CommandContext) -> None:
        self._commands = context
        self._templates = Environment(
            loader=PackageLoader("finetooth_registry"), autoescape=True,
            finalize=lambda value: escape_controls(value) if type(value) is str else value,
        )  # fmt: skip
        self._templates.filters |= {"json": _json, "number": _number}

    def app(self, service: PageService) -> Asgi:
        """Routes below the page's address. Forms are checked by the board."""
        page = "/versions/{model}/{number:int}"
        looks: Mapping[str, Callable[[AnyRegistry, Request], Html]] = {
            "/": self._overview, "/log": self._log, "/compare": self._compared, page: self._version,
            f"{page}/verified": self._verified, "/decisions": self._decisions, "/curves/{model}": self._curves,
        }  # fmt: skip
        changes: Mapping[str, Callable[[AnyRegistry, Request, Mapping[str, str]], Html | None]] = {
            f"{page}/promote": self._promote, f"{page}/hold": self._hold, f"{page}/lift": self._lift,
            f"{page}/approve": self._approve, f"{page}/revert": self._revert, "/rollback": self._roll_back,
        }  # fmt: skip
        routes = [Route(path, _shows(does, service)) for path, does in looks.items()]
        routes += [Route(path, _changes(does, service), methods=["POST"]) for path, does in changes.items()]
        return Router(routes)

    def _html(self, name: str, request: Request, **about: Any) -> Markup:
        root = str(request.scope.get("root_path", ""))
        about |= {"root": root, "secret": request.state.token, "address": lambda version: _address(root, version)}
        return Markup(self._templates.get_template(f"{name}.html").render(about))

    def _overview(self, registry: AnyRegistry, request: Request) -> Html:
        shown, trusted = registry.versions(newest=MOST)[::-1], registry.trusted()
        signers = {version.called: records.signers_of(registry.record(version), trusted) for version in shown}
        refusals = registry.events(kinds=("refused",), newest=MOST)[::-1]
        return "Registry", self._html(
            "overview", request, where=_where(), versions=shown, left=len(shown) == MOST, held=registry.released(),
            signers=signers, refusals=refusals,
        )  # fmt: skip

    def _version(
        self, registry: AnyRegistry, request: Request, said: Any = None, passed: bool = False, asked: str = ""
    ) -> Html:
        version = _named(registry, request)
        metrics, answers = registry.metrics(version)
        made_of = lineage(registry, version)
        root = str(request.scope.get("root_path", ""))
        channels = list(registry.policy.channels)
        holds = {channel: why for channel in channels if (why := registry.held(version, channel))}
        about = registry.events(version.model, DECIDED)
        decided = [event for event in about if event.detail.get("number") == version.number]
        return version.called, self._html(
            "version", request, version=version, here=_address(root, version), metrics=metrics, answers=answers,
            lineage=made_of, drawing=drawing(made_of, partial(_address, root)), channels=channels, holds=holds,
            decisions=decided[::-1], key=os.environ.get("FT_REGISTRY_KEY", ""), said=said, passed=passed, asked=asked,
            signers=records.signers_of(registry.record(version), registry.trusted()),
        )  # fmt: skip

    def _verified(self, registry: AnyRegistry, request: Request) -> Html:
        version = _named(registry, request)
        links = list(verify_version(registry, version, whole=False))
        here = _address(str(request.scope.get("root_path", "")), version)
        holds = all(link.holds for link in links)
        about = {"version": version, "here": here, "links": links, "holds": holds}
        return f"Verification of {version.called}", self._html("verified", request, **about)

    def _compared(self, registry: AnyRegistry, request: Request) -> Html:
        named = request.query_params.getlist("v")
        if not 1 < len(named) <= COMPARED:
            raise UserError(f"{len(named)} versions are ticked", action=f"tick 2 to {COMPARED} of them")
        versions = [registry.version(called) for called in named]
        sides = [_flat(records.read(registry.record(version))["predicate"]) for version in versions]
        measured = [
            {f"measured.{n}": _number(v) for n, v in registry.metrics(version)[0].items()} for version in versions
        ]
        both = [{**numbers, **side} for numbers, side in zip(measured, sides, strict=True)]
        names = sorted(set().union(*both), key=lambda name: (not name.startswith("measured."), name))
        rows = [(name, [side.get(name, "-") for side in both]) for name in names]
        called = [version.called for version in versions]
        return "Versions compared", self._html("compare", request, versions=versions, called=called, rows=rows)

    def _decisions(self, registry: AnyRegistry, request: Request) -> Html:
        events = registry.events(kinds=decisions.KINDS, newest=MOST_READ)[::-1]
        must = {name for name, channel in registry.policy.channels.items() if channel.signed_decisions}
        trusted = registry.trusted()
        rows = [
            (event, *decisions.check(registry, event, trusted, must=event.detail.get("channel") in must))
            for event in events
        ]
        return "Decisions", self._html("decisions", request, rows=rows, left=len(events) == MOST_READ)

    def _curves(self, registry: AnyRegistry, request: Request) -> Html:
        model, metric = request.path_params["model"], request.query_params.get("metric", "") or "eval/loss"
        made = curves(registry, model, metric, MOST_READ)
        drawn = [Markup(picture) for picture in pictures(made, metric).values()]
        about = {"model": model, "metric": metric, "curves": made, "drawn": drawn, "left": len(made) == MOST_READ}
        return f"Curves of {model}", self._html("curves", request, **about)

    def _log(self, registry: AnyRegistry, request: Request) -> Html:
        broken, events = "", registry.events(newest=MOST)
        try:
            registry.check_log(whole=False)
            chained(events, (events[0].sequence - 1, events[0].previous) if events else NOTHING)
        except UserError as error:
            broken = str(error)
        left = events[0].sequence - 1 if events else 0
        return "Log", self._html("log", request, events=events[::-1], left=left, broken=broken)

    def _promote(self, registry: AnyRegistry, request: Request, form: Mapping[str, str]) -> Html:
        version, channel = _named(registry, request), form.get("channel", "")
        passed, verdicts = releasing.promote(self._commands, registry, version, channel, signer=records.own_signer())
        title = f"{decisions.outcome(verdicts)}: {version.called} to {channel}"
        return self._version(registry, request, verdicts, passed, title)

    def _hold(self, registry: AnyRegistry, request: Request, form: Mapping[str, str]) -> None:
        version, channel = _named(registry, request), form.get("channel", "")
        releasing.hold(registry, version, channel, form.get("why", ""), records.own_signer())

    def _lift(self, registry: AnyRegistry, request: Request, form: Mapping[str, str]) -> None:
        releasing.hold(registry, _named(registry, request), form.get("channel", ""), "", records.own_signer())

    def _revert(self, registry: AnyRegistry, request: Request, form: Mapping[str, str]) -> None:
        releasing.revert(registry, _named(registry, request), form.get("why", ""), records.own_signer())

    def _approve(self, registry: AnyRegistry, request: Request, form: Mapping[str, str]) -> None:
        registry.countersign(_named(registry, request), records.load_signer(Path(form.get("key", ""))))

    def _roll_back(self, registry: AnyRegistry, request: Request, form: Mapping[str, str]) -> None:
        releasing.roll_back(
            registry, form.get("model", ""), form.get("channel", ""), form.get("why", ""), records.own_signer()
        )


def _shows(does: Callable[[AnyRegistry, Request], Html], service: PageService) -> Callable[[Request], Any]:
    async def answer(request: Request) -> Response:
        request.state.token = service.token
        title, body = await asyncio.to_thread(lambda: does(open_registry(_where()), request))
        return HTMLResponse(service.whole(title, body))

    return answer


def _changes(
    does: Callable[[AnyRegistry, Request, Mapping[str, str]], Html | None], service: PageService
) -> Callable[[Request], Any]:
    """After a change the browser returns to the page that it came from, unless the answer is a separate page."""

    async def answer(request: Request) -> Response:
        form = service.form(await request.body())
        request.state.token = service.token
        made = await asyncio.to_thread(lambda: does(open_registry(_where()), request, form))
        if made is not None:
            return HTMLResponse(service.whole(*made))
        back, _, _ = request.url.path.rpartition("/")
        return RedirectResponse(back if "/versions/" in back else f"{back}/", 303)

    return answer


def _where() -> str:
    return os.environ.get(VARIABLE) or "registry"


def _named(registry: AnyRegistry, request: Request) -> Version:
    return registry.version(f"{request.path_params['model']}@v{request.path_params['number']}")


def _address(root: str, version: Version) -> str:
    return f"{root}/versions/{version.model}/{version.number}"


def _flat(facts: Any, name: str = "") -> dict[str, str]:
    if isinstance(facts, Mapping):
        inner = [_flat(value, f"{name}.{key}" if name else str(key)) for key, value in facts.items()]
        return {key: value for part in inner for key, value in part.items()}
    return {name: facts if isinstance(facts, str) else _json(facts)}


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=dict)


def _number(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, int | float) else "-"
