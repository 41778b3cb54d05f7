"""For every test: the model hub is not asked, and property tests draw the same examples every time, so that what passed
passes again; `FT_EXPLORE=1` draws others. And little time goes into looking for cycles among what lives as long as the
process: the libraries and thousands of collected tests. What the machine computes with stands at the beginning, and in
the report of each test that failed."""

from __future__ import annotations

import gc
import math
import os
import sys
import time
from collections import Counter
from collections.abc import Generator
from functools import cache
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

pytest_plugins = [f"finetooth_kit.{name}_fixtures" for name in ("adapter", "evaluator", "run")] + [
    "finetooth_kit.shared_data"
]
"""Fixtures of the kit, for the tests of every package."""


def _module(path: str) -> Any:
    """A module of one package's tests with fixtures for all: one way to start a server, one to open a browser."""
    file = Path(__file__).parent / path
    spec = spec_from_file_location(f"finetooth_tests_{file.parents[1].name}_{file.stem}", file)
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclass looks there
    spec.loader.exec_module(module)
    return module


postgres = _module("plugins/data/sql/tests/conftest.py").postgres
_clicking = _module("plugins/commands/board/tests/clicking.py")
browser, tab, accessible = _clicking.browser, _clicking.tab, _clicking.accessible

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before any library that asks the hub is imported: tests use no network

settings.register_profile("repeatable", derandomize=True, deadline=None)  # no clock judges an example
if not os.environ.get("FT_EXPLORE"):
    settings.load_profile("repeatable")


@cache
def capability() -> str:
    """What sums are computed with, and so in which order: the CPU, torch, oneDNN and MKL below it, our kernels."""
    try:
        import torch

        torch_uses = torch.backends.cpu.get_cpu_capability()
    except ImportError:
        torch_uses = "not installed"
    said = [f"CPU {_widest()}", f"torch {torch_uses}"]
    for name, variable in (
        ("oneDNN", "ONEDNN_MAX_CPU_ISA"), ("MKL", "MKL_ENABLE_INSTRUCTIONS"), ("native kernels", "FT_NATIVE_ISA"),
    ):  # fmt: skip
        said.append(f"{name} {os.environ.get(variable) or 'not limited'}")
    return ", ".join(said)


def _widest() -> str:
    """The widest vectors of the CPU, as Linux names them."""
    about = Path("/proc/cpuinfo")
    flags = about.read_text(errors="replace").split() if about.is_file() else []
    known = ("amx_bf16", "avx512_bf16", "avx512f", "avx2", "sve", "asimd")
    return next((flag for flag in known if flag in flags), "of unknown vectors")


def pytest_report_header() -> str:
    return f"capability: {capability()}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed:
        report.sections.append(("capability", capability()))
    return report


LAST_BEGIN = pytest.StashKey[float]()
"""When the last slow test may begin, on the monotonic clock, in seconds."""
MOST_WHOLE = 120
"""Slow cases that `--whole` may bring: about twenty minutes on two cores."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--share", type=int, default=1, metavar="N", help="of a slow test's cases every Nth, the first one too"
    )
    parser.addoption("--whole", default="", metavar="PLACES", help="folders and files without --share, by commas")
    parser.addoption(
        "--minutes", type=float, default=0, metavar="N", help="no slow test begins later than this; 0: no limit"
    )


def pytest_sessionstart(session: pytest.Session) -> None:
    minutes = session.config.getoption("--minutes")
    session.config.stash[LAST_BEGIN] = time.monotonic() + 60 * minutes if minutes else math.inf


def pytest_runtest_setup(item: pytest.Item) -> None:
    """A machine that is slower than others leaves tests out, and says so, instead of not coming to an end."""
    if time.monotonic() > item.config.stash[LAST_BEGIN] and item.get_closest_marker("slow") is not None:
        pytest.skip(f"no time was left (--minutes): {item.nodeid}")


SLOW_CASES = Path(__file__).parent / "tests/slow_cases.txt"
"""Cases that `tools/time_tests.py` found to take over half a second."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Cases that are listed are slow. `--share N` leaves out cases of slow tests. Those that are marked `each`
    are all run, and those of the places in `--whole`, in their order, until that is `MOST_WHOLE` cases more than the
    share."""
    long = frozenset(SLOW_CASES.read_text(encoding="utf-8").splitlines())
    for item in items:
        if item.nodeid in long:
            item.add_marker("slow")
    share = config.getoption("--share")
    if share < 2:
        return
    whole: list[str] = []
    room = MOST_WHOLE
    for place in filter(None, config.getoption("--whole").split(",")):
        room -= sum(item.get_closest_marker("slow") is not None and item.nodeid.startswith(place) for item in items)
        if room < 0:
            break
        whole.append(place)
    seen: Counter[str] = Counter()
    kept: list[pytest.Item] = []
    left: list[pytest.Item] = []
    for item in items:
        function = item.nodeid.partition("[")[0]
        drops = item.get_closest_marker("slow") is not None and item.get_closest_marker("each") is None
        shared = drops and not function.startswith(tuple(whole))
        (left if shared and seen[function] % share else kept).append(item)
        seen[function] += drops
    config.hook.pytest_deselected(items=left)
    items[:] = kept


def pytest_collection_finish() -> None:
    """Folders of tests that have no `__init__.py` are modules without a file. `inspect.getmodule` fails, once, where it
    has seen a module of that name with one (`kernels`, which libraries look for), and pydantic calls it."""
    for module in list(sys.modules.values()):
        if vars(module).get("__file__", "") is None:
            del module.__file__


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """The collector of cycles rests meanwhile, and only its rare full collections look at what was made: all of it
    stays. Not frozen for good: counting what is frozen, as `finetooth_core.plugins.collector` does, walks over
    all of it."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.unfreeze()  # into the oldest generation
        gc.enable()
