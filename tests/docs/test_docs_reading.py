"""What a stranger reads to write a plugin: the lists are whole, short enough, and drawn in the guide."""

import ast
import importlib.util
import re
import subprocess
import sys

import pytest

NOT_READ = {
    "finetooth_hooks": "names are listed in `docs/hooks/types`",
    "finetooth_hooks.protocols": "gathers the protocols that their modules define",
    "finetooth_hooks.bases": "what a class derives from; the protocol says what its methods do",
    "finetooth_hooks.context": "the guide names what is called on it",
    "finetooth_hooks.data.examples": "the guide names the one class",
    "finetooth_hooks.sampling": "the guide says what is given and what comes back; who writes an engine reads it",
    "finetooth_hooks.compute.quantizers": "a field of a request that a backend may refuse",
    "finetooth_hooks.continuous": "a capability that one can do without",
    "finetooth_kit": "made for tests",
    "finetooth_steps.data_checks": "called as the example calls it",
    "finetooth_steps.loss_state": "called as the example calls it",
    "finetooth_steps.not_finite": "called as the example calls it",
    "finetooth_steps.normalizers": "called as the guide calls it; the page of losses says what they are",
    "finetooth_steps.outputs": "called as the guide calls it",
    "finetooth_steps.rectangles": "called as the guide calls it; what it gives is `LossData`, in losses.py",
    "finetooth_steps.layout": "called as the example calls it; what it gives is in micro_batches.py",
}
"""Modules that an example imports and that nobody has to read, and why."""


@pytest.fixture(scope="module")
def counting(root):
    spec = importlib.util.spec_from_file_location("count_reading", root / "tools/count_reading.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_table_is_up_to_date_and_lists_are_short(root):
    command = [sys.executable, "tools/count_reading.py", "--check"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_lines_are_those_of_wc(root, counting):
    for reading in counting.READINGS:
        counted = subprocess.run(["wc", "-l", *reading.files], cwd=root, capture_output=True, text=True, check=True)
        assert int(counted.stdout.splitlines()[-1].split()[0]) == reading.lines()
        assert len(set(reading.files)) == len(reading.files)


def test_what_examples_import_is_read_or_need_not_be(root, counting):
    """An example shows what a plugin of its kind is written with: all of that is in the list."""
    for reading in counting.READINGS:
        for file in reading.files:
            if file.startswith(("docs/", "tests/engine/")) and file.endswith(".py"):
                unread = imported(root / file) - set(NOT_READ) - {module_of(one) for one in reading.files}
                assert not unread, f"{reading.plugin}: {file} imports {sorted(unread)}"


WRITTEN = [("write-an-attention", "tidy.py"), ("write-a-kernel", "acme_norm.py"), ("online-rl", "best_of_group.py")]


@pytest.mark.parametrize(("guide", "name"), WRITTEN)
def test_what_is_written_in_30_lines_has_no_more(root, guide, name):
    text = (root / f"docs/guides/{guide}.md").read_text(encoding="utf-8")
    found = re.search(rf"^<!-- file: {re.escape(name)} -->\n```python\n(.*?)^```$", text, re.M | re.S)
    assert found is not None and found[1].count("\n") <= 30


def module_of(file: str) -> str:
    return re.sub(r"^.*src/|\.py$", "", file).replace("/", ".")


def imported(file) -> set[str]:
    """Modules of hooks, steps and toolbox that a file imports from."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    found = {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    return {name for name in found if name.startswith(("finetooth_hooks", "finetooth_steps", "finetooth_toolbox"))}
