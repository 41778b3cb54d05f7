"""What `ft` does before and around its commands."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from finetooth_core.cli import main
from finetooth_core.cli.start_options import StartOptions, read_start_options, split_plugins
from finetooth_hooks import UserError
from finetooth_saving.runs import processes


@pytest.mark.parametrize(
    ("arguments", "environment", "options", "rest"),
    [
        ("run r.yaml a=1", "", StartOptions(), "run r.yaml a=1"),
        ("--plugins a.py run r.yaml", "", StartOptions(("a.py",)), "run r.yaml"),
        ("run r.yaml --plugins a.py --plugins=b", "", StartOptions(("a.py", "b")), "run r.yaml"),
        ("run -p no:acme -pno:other r.yaml", "", StartOptions(blocked=("acme", "other")), "run r.yaml"),
        ("run r.yaml --log-level info", "", StartOptions(), "--log-level info run r.yaml"),
        ("run --log-level=info r.yaml", "", StartOptions(), "--log-level=info run r.yaml"),
        ("serve -p 80", "", StartOptions(), "serve -p 80"),
        ("run r.yaml --debug", "", StartOptions(debug=True), "run r.yaml"),
        ("x -- --plugins a --debug", "", StartOptions(), "x -- --plugins a --debug"),
        ("run --plugins b.py", "a.py,c>=1,<2", StartOptions(("a.py", "c>=1,<2", "b.py")), "run"),
    ],
)
def test_start_options_stand_anywhere(arguments: str, environment: str, options: StartOptions, rest: str) -> None:
    assert read_start_options(arguments.split(), {"FT_PLUGINS": environment}) == (options, rest.split())


@pytest.mark.parametrize("arguments", ["--plugins", "--plugins=", "--plugins --debug", "-p no:"])
def test_start_options_without_a_value(arguments: str) -> None:
    with pytest.raises(UserError):
        read_start_options(arguments.split(), {})


@pytest.mark.parametrize(
    ("before", "after", "variable", "shown"),
    [
        ("", "", "", ["WARNING"]),
        ("", "--log-level debug", "", ["DEBUG", "INFO", "WARNING"]),
        ("--log-level=info", "", "", ["INFO", "WARNING"]),
        ("", "", "error", []),
        ("--log-level info", "", "error", ["INFO", "WARNING"]),
    ],
)
def test_what_libraries_log_is_shown_from_a_level_on(
    folder: Path, before: str, after: str, variable: str, shown: list[str]
) -> None:
    """Python's own default is to show warnings, without their level."""
    (folder / "chatty.py").write_text(
        "import logging, os\nfrom finetooth_hooks import Command, hookimpl\n\n@hookimpl\ndef ft_commands():\n"
        "    yield Command(name='chatty', build=f'{__name__}:command', summary='logs', section='Use')\n\n"
        "import click\n@click.command()\ndef command():\n"
        "    log = logging.getLogger('acme')\n"
        "    for level in ('debug', 'info', 'warning'):\n        getattr(log, level)('acme ' + level)\n"
        "    click.echo(os.environ.get('HF_HUB_VERBOSITY', ''))\n",
        encoding="utf-8",
    )
    environment = {**os.environ, "FT_PLUGINS": "chatty.py"} | ({"FT_LOG_LEVEL": variable} if variable else {})
    command = [sys.executable, "-m", "finetooth", *before.split(), "chatty", *after.split()]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment, cwd=folder)
    assert [level for level in ("DEBUG", "INFO", "WARNING") if f"acme {level.lower()}" in done.stderr] == shown
    assert done.stdout.strip() == ((before + after).replace("=", " ").split() or ["", variable])[-1]
    assert ("WARNING acme: acme warning" in done.stderr) == bool(shown and (before or after))


def test_a_level_that_does_not_exist_is_one_line(ft: Any) -> None:
    answer = ft("check", "r.yaml", "--log-level", "loud")
    assert answer.code == 2 and "'loud' is not one of" in answer.err and len(answer.err.splitlines()) == 1


def test_split_plugins() -> None:
    assert split_plugins("a.py:b>=1, <2 ,c,,!=3") == ["a.py", "b>=1,<2", "c,!=3"]
    assert split_plugins("") == []


def test_help_lists_commands_under_their_sections(ft: Any) -> None:
    answer = ft("--help")
    assert answer.code == 0
    lines = answer.out.splitlines()
    assert lines.index("Train:") < next(i for i, line in enumerate(lines) if line.startswith("  run "))
    for name in ("run", "check", "chat", "plugins", "schema", "completion", "--plugins", "-p no:DIST", "--debug"):
        assert any(line.strip().startswith(name) for line in lines), name
    assert "Exit codes: 0 done" in answer.out


def test_a_usage_error_of_several_lines_is_one(ft: Any, folder: Path) -> None:
    """click writes choices that it would have, and lines of a message, below each other."""
    (folder / "picky.py").write_text(
        "import click\n"
        "from finetooth_hooks import Command, hookimpl\n"
        "@hookimpl\n"
        "def ft_commands():\n"
        "    yield Command(name='pick', build=f'{__name__}:pick', summary='choose', section='Toys')\n"
        "@click.command()\n"
        "@click.argument('which', type=click.Choice(['red', 'blue']))\n"
        "@click.option('--more')\n"
        "def pick(which, more):\n"
        "    raise click.UsageError('first line\\n\\n\\tsecond   line.')\n"
    )
    said = ft("pick", "red", "--plugins", "picky.py")
    assert (said.code, said.err) == (2, "error: first line second line (see ft pick --help)\n")
    missing = ft("pick", "--plugins", "picky.py")
    assert missing.code == 2 and missing.err.count("\n") == 1
    assert "Missing argument" in missing.err and "red, blue" in missing.err


def test_train_is_run(ft: Any) -> None:
    options = ft("run", "--help").out.partition("\n")[2]
    train = ft("train", "--help")
    assert train.code == 0 and "--remote URL" in options and train.out.partition("\n")[2] == options
    assert not any(line.strip().startswith("train ") for line in ft("--help").out.splitlines())


def test_a_plugins_command_is_listed_and_called(ft: Any, folder: Path) -> None:
    (folder / "greeting.py").write_text(
        "import click\n"
        "from finetooth_hooks import Command, hookimpl\n"
        "@hookimpl\n"
        "def ft_commands():\n"
        "    yield Command(name='greet', build=f'{__name__}:greet', summary='say hello', section='Toys')\n"
        "    yield Command(name='run', build=f'{__name__}:greet', summary='a taken name', section='Toys')\n"
        "    yield Command(name='wrong', build=f'{__name__}:ft_commands', section='Toys')\n"
        "@click.command()\n"
        "@click.argument('who')\n"
        "@click.pass_obj\n"
        "def greet(obj, who):\n"
        "    click.echo(f'hello {who}, {len(obj.catalog.all(\"command\"))}')\n"
        "    return 5\n"
    )
    helped = ft("--plugins", "greeting.py", "--help").out
    assert "Toys:" in helped
    assert "say hello" in helped
    assert "greeting.py:run" in helped  # a taken name needs its source
    answer = ft("greet", "you", "--plugins", "greeting.py")
    assert (answer.code, answer.out.startswith("hello you")) == (5, True)
    assert ft("--plugins", "greeting.py", "greeting.py:run", "you").code == 5
    assert ft("--plugins", "greeting.py", "run").err.startswith("error: Missing argument 'RECIPE'")
    broken = ft("wrong", "--plugins", "greeting.py")
    assert broken.code == 2
    assert "which is not a click command" in broken.err
    assert ft("greet", "you").code == 2  # not without the plugin


STEERING = """
import time
from pathlib import Path
import click
from finetooth_hooks import Command, hookimpl
@hookimpl
def ft_commands():
    yield Command(name='steer', build=f'{__name__}:steer', summary='start, stop, resume')
@hookimpl
def ft_step(run, report):
    with Path('steps').open('a') as file:
        file.write(f'{report.step} ')
    while report.step == 2 and not Path('go').exists():
        time.sleep(0.01)
@click.command()
@click.argument('what')
@click.argument('name')
@click.pass_obj
def steer(context, what, name):
    if what == 'start':
        click.echo(context.start('recipe.yaml', ['train.epochs=3'], name))
    elif what == 'stop':
        context.stop(name)
    else:
        click.echo(context.resume(name, ['train.epochs=4']))
"""


@pytest.mark.slow  # five commands, and two processes of their own
def test_a_plugins_command_starts_stops_and_resumes_a_run(ft: Any, folder: Path) -> None:
    """It has nothing but its context. Its own hook waits in the second step: the run has the command line's plugins."""
    (folder / "steering.py").write_text(STEERING)

    def steer(*arguments: str) -> Any:
        return ft("--plugins", "./steering.py", "steer", *arguments)

    def result() -> tuple[str, int]:
        made = json.loads((folder / "runs/new/result.json").read_text())
        return made["status"], made["steps"]

    assert steer("start", "new").out == "runs/new\n"
    process, steps = processes.BEGUN[-1], folder / "steps"
    while not steps.exists() or steps.read_text() != "1 2 ":
        assert process.poll() is None, processes.output_of(Path("runs/new"))
        time.sleep(0.01)
    for refused in ("start", "resume"):
        answer = steer(refused, "new")
        assert answer.code == 2 and answer.err.count("\n") == 1 and "runs/new" in answer.err
    assert steer("stop", "new").code == 0
    (folder / "go").touch()
    assert process.wait() == 130 and result() == ("interrupted", 2)
    assert json.loads((folder / "runs/new/plan.json").read_text())["total_steps"] == 6
    answer = steer("stop", "new")
    assert answer.code == 2 and "runs/new is not under way (runs/new/result.json says how it ended)" in answer.err
    assert steer("resume", "runs/new").out == "runs/new\n"
    assert processes.BEGUN[-1].wait() == 0
    assert result() == ("done", 10)  # 2 and 8: the toy's method does not keep its place among the rows
    assert steps.read_text() == "".join(f"{step} " for step in range(1, 11))
    assert "no run has this name" in steer("resume", "other").err


def test_ft_plugins(ft: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FT_PLUGINS", "./toy_plugin.py")
    assert "toy_plugin.py" in ft("plugins", "list").out


def test_a_broken_plugin_that_is_named_stops(ft: Any, folder: Path) -> None:
    (folder / "broken.py").write_text("import package_that_is_not_there\n")
    answer = ft("check", "recipe.yaml", "--plugins", "./broken.py")
    assert answer.code == 2
    assert "package_that_is_not_there" in answer.err
    assert "Traceback" not in answer.err
    assert ft("--plugins", "./broken.py", "--help").code == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["rnu"], "no command 'rnu' (did you mean ft run?)"),
        (["tain"], "no command 'tain' (did you mean ft train?)"),
        (["preprocess"], "no command 'preprocess' (did you mean ft data prepare?)"),
        (["begin"], "no command 'begin'; there are: run, resume, check, plugins, "),
        (["utterly-unknown"], "no command 'utterly-unknown'; there are: run, "),
        (["-p", "acme", "run"], "does not start with no:"),
        (["-p", "no:never-installed-plugin", "--help"], "no:never-installed-plugin"),
        (["completion", "tcsh"], "'tcsh' is not one of"),
        (["chat", "m", "--max-tokens", "0"], "0 is not in the range"),
        (["schema", "--field", "train.batchsize"], "did you mean train.batch_size?"),
    ],
)
def test_wrong_arguments(ft: Any, arguments: list[str], said: str) -> None:
    answer = ft(*arguments)
    assert answer.code == 2
    assert said in answer.err
    assert len(answer.err.splitlines()) == 1


def test_no_arguments_show_the_help(ft: Any) -> None:
    answer = ft()
    assert answer.code == 2
    assert "Train:" in answer.out


def test_version(ft: Any) -> None:
    answer = ft("--version")
    assert answer.code == 0
    first, libraries, plugins = answer.out.splitlines()
    assert first.startswith("ft ")
    assert f"python {platform.python_version()}, " in libraries and f"numpy {np.__version__}" in libraries
    count = len({entry.dist.name for entry in entry_points(group="finetooth") if entry.dist is not None})
    assert plugins.startswith("plugins: ") and int(plugins.split()[1]) + plugins.count(",") == count


def command_that(raising: str, folder: Path) -> None:
    (folder / "raising.py").write_text(
        "import click\n"
        "from finetooth_hooks import Command, EngineError, hookimpl\n"
        "@hookimpl\n"
        "def ft_commands():\n"
        "    yield Command(name='go', build=f'{__name__}:go')\n"
        "@click.command()\n"
        "def go():\n"
        f"    {raising}\n"
    )


@pytest.mark.parametrize(
    ("raising", "code", "said"),
    [
        (
            "raise EngineError('the loss is not finite', action='lower it')",
            1,
            "error: the loss is not finite (lower it)",
        ),
        ("raise KeyboardInterrupt", 130, "error: interrupted"),
        ("raise OSError(28, 'No space left on device', 'x/y')", 2, "error: x/y: No space left on device"),
        ("raise ValueError('odd')", 1, "error: plugin raising.py: ValueError: odd ["),
        ("raise ConnectionRefusedError(111, 'Connection refused')", 1, "error: plugin raising.py: ConnectionRefused"),
        ("raise click.Abort", 130, "error: interrupted"),
        ("click.get_current_context().exit(9)", 9, ""),
        ("return True", 0, ""),
        ("return 'text'", 0, ""),
    ],
)
def test_exit_codes(ft: Any, folder: Path, raising: str, code: int, said: str) -> None:
    command_that(raising, folder)
    answer = ft("go", "--plugins", "raising.py")
    assert answer.code == code
    assert said in answer.err
    assert "Traceback" not in answer.err


def test_debug_shows_the_traceback_of_a_bug(ft: Any, folder: Path) -> None:
    command_that("raise ValueError('odd')", folder)
    assert "Traceback" in ft("go", "--plugins", "raising.py", "--debug").err


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_script(ft: Any, shell: str) -> None:
    answer = ft("completion", shell)
    assert answer.code == 0
    assert "_FT_COMPLETE" in answer.out


@pytest.mark.parametrize(
    ("words", "number", "completed"),
    [
        ("ft r", 1, "run"),
        ("ft run recipe.yaml train.bat", 3, "train.batch_size="),
        ("ft run recipe.yaml --out", 3, "--output"),
    ],
)
def test_completion(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, words: str, number: int, completed: str
) -> None:
    monkeypatch.setenv("_FT_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(number))
    with pytest.raises(SystemExit) as ended:
        main([])
    assert ended.value.code == 0
    assert completed in [line.partition(",")[2] for line in capsys.readouterr().out.splitlines()]


PROBE = """
import sys
from finetooth_core.cli import main
code = main({arguments!r})
heavy = [name for name in {heavy!r} if name in sys.modules]
assert not heavy, heavy
sys.exit(code)
"""
HEAVY = ("torch", "transformers", "datasets", "mlx", "pydantic", "numpy", "yaml", "rich")


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], ["run", "--help"], ["check", "--help"], ["chat", "--help"]]
)
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    code = PROBE.format(arguments=arguments, heavy=HEAVY)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_python_m_finetooth() -> None:
    done = subprocess.run([sys.executable, "-m", "finetooth", "nonsense"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: no command 'nonsense'")


def test_a_closed_pipe_says_nothing() -> None:
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "finetooth", "--help"]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert done.stderr == ""
    assert done.returncode == 1


@pytest.mark.parametrize(
    ("call", "frozen"), [("sys.argv = ['ft', '--version']; main()", True), ("main(['--version'])", False)]
)
def test_a_process_of_its_own_looks_for_no_cycles_at_its_end(call: str, frozen: bool) -> None:
    code = "import atexit, gc, sys; atexit.register(lambda: print(gc.get_freeze_count()))\n"
    code += f"from finetooth_core.cli import main; {call}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (int(done.stdout.split()[-1]) > 0) == frozen
