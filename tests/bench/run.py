"""Measure finetooth against what a user would pick instead, and write docs/benchmarks.md.

    python tests/bench/run.py [--quick | --smoke] [--only a,d] [--contender "finetooth bf16;TRL defaults"]

Each contender is a process of its own; they take turns. The quick form leaves out hooks, saving and preferences (h, i,
j, s). Results go to tests/bench/results/NAME.json, one file for each workload, so a run can be done in pieces; the page
is drawn from all files that are there. `--results tests/bench/results-NAME` keeps those of another machine apart. Peers
need their own environments, and finetooth is measured in one without what tests need: `make bench-peers` makes them.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness import RESULTS, compare, page, results
from harness.machine import load, machine
from harness.process import Finished, run
from harness.turns import turns
from harness.warmth import read_in
from harness.workload import Contender, Form, Workload
from harness.workloads import contenders, pick

ROOT = Path(__file__).resolve().parents[2]
CONTENDERS = Path(__file__).resolve().parent / "contenders"
TIMEOUT = {"smoke": 300.0, "quick": 600.0, "full": 3600.0}
QUICK_SECONDS = 900.0
"""After so long the quick form begins no second round."""
INPUTS = ("rows", "preferred", "windows", "length", "score_rows", "prompts", "count")
"""Sizes that decide what files a contender reads."""
OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "PYTHONWARNINGS": "ignore"}


@dataclass(frozen=True)
class Bench:
    """How contenders are run.

    Attributes:
        form: `smoke`, `quick` or `full`.
        pythons: interpreter of each home.
        cache: folder for inputs and logs.
        data: folder with the data sets.
        model: by a name that a finetooth loader knows.
        timeout: of one contender, in seconds.
        invocation: marks all runs that it makes; ratios are taken within one.
        deadline: `time.monotonic` after which no second round begins; every contender still has its first.
    """

    form: Form
    pythons: Mapping[str, Path]
    cache: Path
    data: Path
    model: str
    timeout: float
    invocation: str
    deadline: float = float("inf")

    def start(self, script: str, home: str, spec: Mapping[str, Any], log: str) -> Finished:
        """Run one script in the environment of its home."""
        python = self.pythons[home]
        if not python.exists():
            return Finished({}, "not installed: run `make bench-peers`", 0.0, 0)
        command = [str(python), str(CONTENDERS / script)]
        path = self.cache / "logs" / f"{log}.log"
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"} | OFFLINE
        return run(command, spec, timeout=self.timeout, environment=environment, log=path, compiled=self.compiled)

    def read_in(self, home: str) -> None:
        """Bring what a home's contenders load into the system's memory: its libraries, our packages and the model."""
        python = self.pythons[home]
        if python.exists():
            ours = [*ROOT.glob("*/src"), *ROOT.glob("plugins/*/*/src")] if home in ("ours", "tested") else []
            read_in(python.parent.parent / "lib", *ours, self.cache / "model", self.compiled)

    @property
    def compiled(self) -> Path:
        """Where finetooth's compiled kernels are kept between contenders: compiling is paid once a machine."""
        return self.cache / "compiled"

    def warm(self) -> str:
        """Compile these kernels, if that was not done yet; why there are none, empty if there are.

        Python's bytecode too, of every environment, as pip leaves it and uv does not.
        """
        for python in dict.fromkeys(self.pythons.values()):
            if python.exists():
                where = "import sysconfig, compileall; compileall.compile_dir(sysconfig.get_path('purelib'), quiet=2)"
                subprocess.run([str(python), "-c", where], check=False)
        done = self.start("native_compile.py", "ours", {"keep": str(self.compiled)}, "native")
        return str(done.failed or done.result["native"].get("reason", ""))

    def inputs(self, sizes: Mapping[str, Any]) -> dict[str, Any]:
        """The files for these sizes, made where they are missing.

        Raises:
            RuntimeError: they cannot be made.
        """
        wanted = {name: sizes[name] for name in INPUTS if name in sizes}
        spec = {**wanted, "cache": str(self.cache), "data_folder": str(self.data), "model": self.model}
        spec.setdefault("length", 1024)
        made = self.start("make_inputs.py", "ours", spec, "inputs")
        if made.failed:
            raise RuntimeError(f"the inputs cannot be made: {made.failed} (see {self.cache / 'logs/inputs.log'})")
        return dict(made.result)


def measure(bench: Bench, workload: Workload, names: Sequence[str], rounds: int | None, target: Path) -> None:
    """Run one workload, writing after every contender.

    Args:
        names: contenders that take part.
        target: its result file.
    """
    sizes = workload.sizes[bench.form]
    before = results.read(target.parent).get(workload.name)
    everybody = [c.name for c in workload.contenders]
    head: dict[str, Any] = {"workload": workload.name, "form": bench.form, "machine": machine(), "sizes": dict(sizes)}
    runs: list[dict[str, Any]] = []
    inputs: dict[tuple[Any, ...], dict[str, Any]] = {}
    config: dict[str, Any] = {}
    for index, contender in turns(workload, bench.form, rounds):
        if contender.name not in names:
            continue
        if index and time.monotonic() > bench.deadline:
            print(f"{workload.key} round {index + 1}: {contender.name} is left out, time is up")
            continue
        told = {**sizes, **contender.options}
        key = tuple(told.get(name) for name in INPUTS)
        if key not in inputs:
            inputs[key] = bench.inputs(told)
        config = config or inputs[key].get("config", {})
        runs.append(take(bench, workload, contender, index, {**inputs[key], **told}))
        content = {**head, "config": kept_config(config), "runs": [results.kept(one) for one in runs]}
        results.write(target, results.merged(before, content, names, everybody))
    if not runs:
        return
    comparisons = compare.comparisons(
        workload, runs, lambda spec: judge(bench, {**spec, **next(iter(inputs.values()))})
    )
    content = {**head, "config": kept_config(config), "runs": [results.kept(one) for one in runs]}
    results.write(target, results.merged(before, {**content, "comparisons": comparisons}, names, everybody))


def take(bench: Bench, workload: Workload, contender: Contender, index: int, spec: Mapping[str, Any]) -> dict[str, Any]:
    """One turn of one contender: its figures, or why it failed."""
    print(f"{workload.key} round {index + 1}: {contender.name} ...", end=" ", flush=True)
    log = (
        f"{workload.name}-{contender.name}-{index}".replace(" ", "_").replace(",", "").replace("(", "").replace(")", "")
    )
    bench.read_in(contender.home)
    quiet = load()
    done = bench.start(contender.script, contender.home, spec, log)
    found: dict[str, Any] = {"contender": contender.name, "round": index, "date": time.strftime("%Y-%m-%d")}
    found["invocation"] = bench.invocation
    found |= {name: spec[name] for name in ("precision", "curve", "x") if name in spec}
    found |= {"load_before": quiet, "wall_s": round(done.wall_s, 3)}
    if done.failed:
        print(f"failed: {done.failed}")
        return {**found, "failed": scrubbed(done.failed, bench)}
    found |= {"peak_rss_bytes": done.peak_rss_bytes, **done.result}
    if done.others_cores is not None:
        found["others_cores"] = round(done.others_cores, 2)
    found["peak_memory_bytes"] = found.get("device_memory_bytes") or done.peak_rss_bytes
    speed = found.get("tokens_per_second") or found.get("rows_per_second")
    print(f"{done.wall_s:.1f} s, {done.peak_rss_bytes / 1e9:.2f} GB" + (f", {speed:.0f}/s" if speed else ""))
    return found


def judge(bench: Bench, spec: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Where greedy answers part and how near the two tokens were; None if it failed."""
    done = bench.start("judge_ties.py", "ours", spec, "judge")
    return None if done.failed else {"rows": done.result["rows"], "parted": done.result["parted"]}


def scrubbed(text: str, bench: Bench) -> str:
    """The text without paths of this machine."""
    for path in (bench.cache, ROOT, Path.home(), Path(tempfile.gettempdir())):
        text = text.replace(str(path), "...")
    return text


def kept_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Sizes of the model, which the FLOPs of a run are counted from."""
    names = ("num_hidden_layers", "hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim")
    return {name: config.get(name) for name in (*names, "intermediate_size", "vocab_size")}


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    forms = parser.add_mutually_exclusive_group()
    forms.add_argument("--quick", dest="form", action="store_const", const="quick", help="at most half an hour")
    forms.add_argument("--smoke", dest="form", action="store_const", const="smoke", help="tiny: does it work at all")
    parser.set_defaults(form="full")
    parser.add_argument("--only", default="", help="workloads by letter or name, a,d; default all")
    parser.add_argument("--contender", default="", help="contenders by name, parted by semicolons")
    parser.add_argument("--rounds", type=int, help="at most so many")
    parser.add_argument("--timeout", type=float, help="seconds for one contender")
    parser.add_argument("--model", default="smollm2-135m", help="as a recipe names it")
    parser.add_argument("--data", type=Path, default=ROOT / "../shared/data", help="folder with the data sets")
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "finetooth-bench"
    parser.add_argument("--cache", type=Path, default=cache, help="folder for inputs and logs")
    parser.add_argument("--results", type=Path, help="folder of the result files; default tests/bench/results")
    parser.add_argument("--page", action="store_true", help="only draw the page from the result files")
    return parser.parse_args(arguments)


def bench_of(given: argparse.Namespace) -> Bench:
    """The bench that the command line describes."""
    alone = ROOT / ".venv-bench/bin/python"
    pythons = {
        "ours": alone if alone.exists() else Path(sys.executable),
        "tested": Path(sys.executable),
        "peers": ROOT / ".venv-peers/bin/python",
        "llamafactory": ROOT / ".venv-llamafactory/bin/python",
    }
    return Bench(
        given.form,
        pythons,
        given.cache.absolute() / re.sub(r"[^\w.-]+", "-", given.model).strip("-"),
        given.data.resolve(),
        given.model,
        given.timeout or TIMEOUT[given.form],
        time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        time.monotonic() + QUICK_SECONDS if given.form == "quick" else float("inf"),
    )


def docs_of(folder: Path) -> Path:
    """Where the page of a folder of results goes: docs/, or next to a folder that lies elsewhere."""
    return ROOT / "docs" if folder.parent == RESULTS.parent else folder.parent


def draw(folder: Path) -> dict[str, dict[str, Any]]:
    """Write the page and its charts from the result files, take away charts of before; the results."""
    found = results.read(folder)
    others = [path.name for path in sorted(folder.parent.glob(f"{RESULTS.name}*/")) if path != folder]
    docs = docs_of(folder)
    files = {docs / path: text for path, text in page.render(found, folder.name, others).items()}
    for old in set((docs / page.named(folder.name)).glob("*.svg")) - files.keys():
        old.unlink()
    for path, text in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what was asked for, and draw the page; 1 if a contender of ours failed."""
    given = parse(arguments)
    try:
        workloads = pick(given.only)
        taking_part = contenders(workloads, given.contender)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    folder = (given.results or (given.cache / "smoke/results" if given.form == "smoke" else RESULTS)).resolve()
    started, bench = time.monotonic(), bench_of(given)
    missing = "" if given.page else bench.warm()
    if missing:
        print(f"no compiled kernels: {missing}")
    for workload in () if given.page else workloads:
        try:
            measure(bench, workload, taking_part, given.rounds, folder / f"{workload.name}.json")
        except RuntimeError as error:
            print(f"{workload.key}: {error}")
    names = {workload.name for workload in workloads}
    runs = [(name, run) for name, file in draw(folder).items() if name in names for run in file.get("runs", [])]
    failed = [f"{name}: {run['contender']}: {run['failed']}" for name, run in runs if run.get("failed")]
    print("\n".join(["", *failed]) if failed else "every contender ran")
    print(f"{time.monotonic() - started:.0f} s; {docs_of(folder) / page.named(folder.name)}.md")
    ours = {contender.name for workload in workloads for contender in workload.contenders if contender.home == "ours"}
    return int(any(run.get("failed") and run["contender"] in ours for _, run in runs))


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a contender under way is ended with the bench
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
    except subprocess.SubprocessError as error:
        sys.exit(str(error))
