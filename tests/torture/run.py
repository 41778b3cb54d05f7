"""`make torture`: kill runs a thousand times, and write the table in docs/torture.md. It can itself be interrupted and
goes on where it was; what came of another commit is not counted.

    python tests/torture/run.py [--kills 1000] [--folder .torture] [--jobs 2] [--cases grpo ppo]
    python tests/torture/run.py --rollouts --kills 200
    python tests/torture/run.py --mlx --kills 100
    python tests/torture/run.py --ranks --kills 100

With `--rollouts` it is those that learn from rollouts, with `--mlx` those of the MLX engine, with `--ranks` those over
two ranks, and their section of the page is written; else what stands before the sections. The other sections stay.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[2] / "plugins/samplers/servers/tests"))
sys.path.insert(0, str(Path(__file__).parents[1]))

from cases import write_data  # type: ignore[import-not-found]
from killing import Zygote  # type: ignore[import-not-found]
from method_cases import ONLINE_CASES, RANK_CASES, write_method_data  # type: ignore[import-not-found]
from mlx_cases import mlx_cases  # type: ignore[import-not-found]
from s3 import server  # type: ignore[import-not-found]
from trials import Arena, Result, Trial, cases, table, trials  # type: ignore[import-not-found]
from vllm_stand_in import StandIn  # type: ignore[import-not-found]

from conftest import fewer_tokens, write_weights  # type: ignore[import-not-found]

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "torture.md"
SECTION = "## "
SECTIONS = {
    "mlx": "## The MLX engine",
    "rollouts": "## Learning from rollouts",
    "ranks": "## Two ranks, one of which is killed",
}
"""Those of the page, by the option that writes them."""
MLX_TOKENS = 4096
"""Products with a large head take long where MLX computes on a CPU."""
KILLS_EACH = 4
INSTRUMENTED_EACH = 2
MOST_TRIALS = 100_000


def main() -> int:
    """Run what has not been run yet; exit code 1 if a run came out different."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--folder", type=Path, default=ROOT / ".torture")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="runs at the same time, a thread each")
    parser.add_argument("--cases", nargs="+", default=[], metavar="NAME", help="of these alone; the kills are theirs")
    parser.add_argument("--rollouts", action="store_true", help="of those alone that learn from rollouts")
    parser.add_argument("--mlx", action="store_true", help="of those of the MLX engine alone")
    parser.add_argument("--ranks", action="store_true", help="of those over two ranks alone")
    given = parser.parse_args()
    section = next((name for name in SECTIONS if getattr(given, name)), "")
    every = mlx_cases() if given.mlx else RANK_CASES if given.ranks else cases()
    folder: Path = given.folder.absolute()
    folder.mkdir(exist_ok=True)
    of = commit()
    log = folder / f"results-{section}{'-' * bool(section)}{of}.jsonl"
    done = [read(line) for line in log.read_text().splitlines()] if log.exists() else []
    finished = {result.number for result in done}
    names = sorted(case.name for case in every)
    if unknown := set(given.cases) - set(names):
        parser.error(f"there are no cases {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    names = given.cases or ([case.name for case in ONLINE_CASES] if given.rollouts else names)
    order = {name: place for place, name in enumerate(names)}
    writing = threading.Lock()

    def take(result: Result) -> None:
        with writing:
            done.append(result)
            with log.open("a") as file:
                file.write(json.dumps(result.as_json()) + "\n")
            mark = "different: " + "; ".join(result.different) if result.different else "the same"
            print(f"{result.number} {result.case}: {', '.join(result.kills) or 'no kill'}: {mark}", flush=True)

    def share(job: int) -> Iterator[Trial]:
        """A recipe stays with one job, which keeps its undisturbed run; until there were kills enough."""
        for trial in trials(MOST_TRIALS, KILLS_EACH, instrumented=INSTRUMENTED_EACH, every=every):
            if sum(real_kills(result) for result in done if result.case in order) >= given.kills:
                return
            if trial.case.name in order and order[trial.case.name] % given.jobs == job and trial.number not in finished:
                yield trial

    model = folder / ("model-of-mlx" if given.mlx else "model")
    make_model(model, MLX_TOKENS if given.mlx else None)
    with ThreadPoolExecutor(given.jobs) as pool:
        for ended in [pool.submit(work, model, job, share(job), take) for job in range(given.jobs)]:
            ended.result()
    done = [result for result in done if result.case in order]
    written = section_of(section, done, of) if section else page(done, of)
    PAGE.write_text(with_section(PAGE.read_text(), written, SECTIONS.get(section, "")))
    return int(any(result.different for result in done))


def work(model: Path, job: int, share: Iterator[Trial], take: Callable[[Result], None]) -> None:
    """Trials one after the other, with a zygote and a server of their own."""
    place = model.parent / f"job-{job}"
    place.mkdir(exist_ok=True)
    write_data(place)
    write_method_data(place)
    with server() as environment:
        zygote, stand_in = Zygote(environment), StandIn()
        arena = Arena(zygote, place, model, stand_in.url)
        for trial in share:
            try:
                take(arena.run(trial))
            except AssertionError as error:
                why = (str(error)[-300:],)
                remote = trial.remote and trial.case.ranks == 1
                take(Result(trial.number, trial.case.name, remote, trial.points, 0, why, 0.0))
        zygote.close()
        stand_in.close()


def make_model(folder: Path, tokens: int | None) -> None:
    """A tiny random Llama with SmolLM2's tokenizer.

    Args:
        tokens: of its vocabulary, the first alone; None: all.
    """
    if (folder / "config.json").exists():
        return
    import finetooth

    tokenizer = finetooth.session({"model": "smollm2-135m"}, data=False).job.context.tokenizer
    tokenizer.save(folder)
    if tokens is not None:
        fewer_tokens(folder / "tokenizer.json", tokens)
    write_weights(folder, tokens or tokenizer.vocab_size)


def real_kills(result: Result) -> int:
    """Kills that came: a process may make fewer calls than a point asks for."""
    return sum(not kill.endswith("(never came)") for kill in result.kills)


def read(line: str) -> Result:
    """A result from the log."""
    content = json.loads(line)
    return Result(**{**content, "kills": tuple(content["kills"]), "different": tuple(content["different"])})


def commit() -> str:
    """The code that is killed: git's short name of it, with `-changed` where files differ from it."""
    command = ["git", "describe", "--always", "--match=nothing", "--abbrev=8", "--dirty=-changed"]
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()


def page(results: list[Result], of: str) -> str:
    """docs/torture.md.

    Args:
        of: the commit that was killed.
    """
    kills = sum(map(real_kills, results))
    bad = [result for result in results if result.different]
    lines = [
        "# Runs that were killed",
        "",
        "Written by `make torture`. Each run was killed several times with SIGKILL, at random moments and at calls",
        "inside saving, renaming and sending, and went on with `ft resume`. At its end the last state, the artifact,",
        "every metric that is not a measured time or memory, and the sampled text are compared bit for bit with a run",
        "that nobody disturbed.",
        "",
        f"{time.strftime('%Y-%m-%d')}, commit {of}: {len(results)} runs over {len({r.case for r in results})} of "
        f"{len(cases())} recipes. In all of these every pair of",
        "precision, adapter, dropout, accumulation, kind of data, place of saving, schedule and optimizer occurs, and",
        "every method learns from preferences or rewards: references that follow the policy, losses that remember,",
        "heads, rollouts in flight; and bases in fewer bits, adapters that are merged, layers and activations on disk;",
        f"{kills} kills, {sum(result.resumed for result in results)} resumes, "
        f"{sum(result.remote for result in results)} runs with object storage beside the disk.",
        f"Runs that came out different: {len(bad)}.",
        f"Python {platform.python_version()}, {platform.machine()}, one thread.",
        "",
        *table(results),
    ]
    return "\n".join(lines) + "\n"


def section_of(name: str, results: list[Result], of: str) -> str:
    """A section of the page.

    Args:
        name: see `SECTIONS`.
        of: the commit that was killed.
    """
    lines = {
        "rollouts": [
            "Written by `python tests/torture/run.py --rollouts --kills 200`: grpo, ppo and self_rewarding, with",
            "answers drawn ahead, in parts, kept for a replay and asked again, with the engine's own sampler and with",
            "the stand-in of a vLLM server, which weights are put into. Beside saving, they are killed while answers",
            "are drawn (`sample`), at a token in the middle of them (`token`), while they are scored (`score`), and",
            "while weights are put into the server (`put`, `post`). What was drawn in each step is compared too: no",
            "prompt is lost or comes again.",
        ],
        "mlx": [
            "Written by `python tests/torture/run.py --mlx --kills 100`, on a CPU:",
            f"{len({r.case for r in results})} of its {len(mlx_cases())} recipes. In all of these",
            "every pair of its adapters, precisions and optimizers with the",
            "choices above occurs, and references that follow, heads, and rollouts.",
        ],
        "ranks": [
            "Written by `python tests/torture/run.py --ranks --kills 100`: two ranks over gloo under ddp, fsdp,",
            "context, pipeline and diloco. One of them, drawn at random, is killed at a random moment, at a call in",
            "saving, in a sum over ranks, or while ranks speak with each other. The launcher ends the other; it is",
            "resumed over two ranks, and has to end bit for bit as one that nobody disturbed.",
            f"From a kill to the end of the run: {max((r.slowest for r in results), default=0.0):.1f} s at most.",
        ],
    }
    return "\n".join([SECTIONS[name], "", *lines[name], "", *outcome(results, of)]) + "\n"


def outcome(results: list[Result], of: str) -> list[str]:
    """Of a section, what its runs came to."""
    return [
        f"{time.strftime('%Y-%m-%d')}, commit {of}: {len(results)} runs over {len({r.case for r in results})} recipes;",
        f"{sum(map(real_kills, results))} kills, {sum(result.resumed for result in results)} resumes, "
        f"{sum(result.remote for result in results)} runs with object storage beside the disk.",
        f"Runs that came out different: {sum(bool(result.different) for result in results)}.",
        f"Python {platform.python_version()}, {platform.machine()}, one thread.",
        "",
        *table(results),
    ]


def with_section(text: str, written: str, head: str) -> str:
    """A page with one of its sections written anew; one that is not there comes after the first.

    Args:
        head: the section's line; empty for what stands before all sections.
    """
    parts = [part.strip() for part in f"\n{text}".split(f"\n{SECTION}")]
    sections = [parts[0], *(SECTION + part for part in parts[1:])]
    if not head:
        sections[0] = written.strip()
    elif places := [i for i, one in enumerate(sections) if one.startswith(f"{head}\n")]:
        sections[places[0]] = written.strip()
    else:
        sections.insert(1, written.strip())
    return "\n\n".join(sections) + "\n"


if __name__ == "__main__":
    sys.exit(main())
