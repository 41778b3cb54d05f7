"""The page of tasks keeps its promise: few commands, little to read, minutes that were measured, and a table that says
so. Its commands run in `test_docs_commands`."""

from __future__ import annotations

import importlib.util
import re
import shutil
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
MOST_COMMANDS, MOST_READING = 10, 300


@pytest.fixture(scope="module")
def timing() -> ModuleType:
    spec = importlib.util.spec_from_file_location("time_tasks", ROOT / "tools" / "time_tasks.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_each_task_is_short_and_the_table_is_of_this_page(timing: ModuleType) -> None:
    page = timing.PAGE.read_text(encoding="utf-8")
    tasks = timing.tasks_of(page)
    assert len(tasks) == 10
    for task in tasks:
        assert 1 <= len(task.commands) <= MOST_COMMANDS and task.reading <= MOST_READING, task.title
    told = re.findall(r"^\| \[(.+?)\]\(.+?\) \| (\d+) \| (\d+) s \|(?: (\d+) s \| (\d+) s \|)?$", page, re.M)
    assert [one[:3] for one in told] == [(one.title, str(len(one.commands)), f"{one.reading:.0f}") for one in tasks]
    timed = re.search(r"^Timed on \d{1,2} \w+ 20\d\d on \d+ threads of \S.+\.$", page, re.M) is not None
    for _, _, reading, commands, both in told:
        assert bool(commands) == timed, "all of them were timed, on one machine, or none"
        if timed:
            assert abs(int(reading) + int(commands) - int(both)) <= 1 and int(commands) >= 1


@pytest.mark.slow
@pytest.mark.thorough
def test_all_of_it_with_the_model_that_it_names(timing: ModuleType, tmp_path: Path) -> None:
    """Also what the tests' tiny model cannot do: answers that were learned, a run that stops early, a GGUF file for
    Ollama, a server for others. The page is a copy."""
    page = tmp_path / "tasks.md"
    page.write_text(timing.PAGE.read_text(encoding="utf-8"))
    timing.main(["--page", str(page)])
    assert "Timed on" in page.read_text()


TOY = """# Two tasks

| task | commands | reading | commands take | together |
|---|---|---|---|---|
| old | 1 | 1 s | 1 s | 2 s |

Timed long ago.

## Say it

<!-- file: words/said.txt -->
```text
hello
```

<!-- test -->
```sh
grep -q hello words/said.txt
sleep 1
echo it slept
```

<!-- output of the real model -->
```text
it slept
```

## Fail, as it should

<!-- test: exit 3 -->
```sh
exit 3
```

<!-- not run: nobody has it -->
```sh
no-such-program
```
"""


def test_the_tool_types_what_the_page_says_and_writes_how_long_it_took(timing: ModuleType, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(TOY)
    timing.main(["--page", str(page)])
    written = page.read_text()
    (first, second) = re.findall(r"^\| \[.+?\]\((.+?)\) \| (\d+) \| (\d+) s \| (\d+) s \|", written, re.M)
    assert first[:2] == ("#say-it", "3") and int(first[3]) >= 1, "it slept for a second"
    assert second[:2] == ("#fail-as-it-should", "2")
    assert "long ago" not in written and written.count("Timed on") == 1
    assert written[written.index("## Say it") :] == TOY[TOY.index("## Say it") :]
    page.write_text(TOY.replace("exit 3\n", "exit 4\n"))
    with pytest.raises(SystemExit, match="Fail, as it should: exit code 4"):
        timing.main(["--page", str(page)])
    page.write_text(TOY.replace("it slept\n```", "it woke up\n```", 1))
    with pytest.raises(SystemExit, match="Say it: 'it slept' is not in"):
        timing.main(["--page", str(page)])


def test_a_server_is_timed_until_it_serves(timing: ModuleType, tmp_path: Path) -> None:
    program = tmp_path / "serve.sh"
    program.write_text("echo loading\necho serving it at http://127.0.0.1:1\nexec sleep 3600\n")
    block = f"<!-- not run: it goes on until Ctrl-C -->\n```sh\n{shutil.which('bash')} {program} --host 0.0.0.0\n```\n"
    (task,) = timing.tasks_of(f"## Serve\n\n{block}")
    assert timing.run(task, tmp_path, {}) < 1800
