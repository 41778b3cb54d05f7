"""`ft plugins`, as a user calls it."""

from __future__ import annotations

import ast
import importlib
import os
import re
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pytest
from finetooth_authoring.scaffold import SCAFFOLDS, create
from finetooth_core.cli import main
from finetooth_hooks import ENTRY_TYPES

LOSS = """
    from __future__ import annotations
    from finetooth_hooks import Context, Contribution, LossResult, Options
    from finetooth_hooks import arrays as xp
    class HingeOptions(Options):
        margin: float = 1.0
        \"\"\"How far the model must go.\"\"\"
    def build(options: HingeOptions, context: Context):
        def wedge(outputs, data, state):
            each = xp.where(data.mask, xp.maximum(0.0, options.margin - outputs["logprobs"]), 0.0)
            return LossResult({"wedge": Contribution(xp.sum(each), per="tokens")})
        return wedge
"""


def ft(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main(["plugins", *arguments])
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return code, captured.out, captured.err


def test_list_shows_plugins_and_what_is_broken(site, loss_plugin, capsys) -> None:
    site.add("acme-hinge", loss_plugin("wedge"), version="1.2")
    site.add("acme-broken", "import nonesuch_module")
    code, out, _ = ft(capsys, "list")
    assert code == 0
    assert any(line.split() == ["acme-hinge", "1.2", "loss", "wedge"] for line in out.splitlines())
    assert "broken: acme-broken 1.0: it cannot be imported: ModuleNotFoundError" in out
    code, out, _ = ft(capsys, "list", "--kind", "loss")
    assert "acme-hinge" in out
    assert ft(capsys, "list", "--kind", "losses")[0] == 2


def test_show(site, loss_plugin, capsys) -> None:
    module = site.add("acme-hinge", loss_plugin("wedge") + "@hookimpl\ndef ft_step(run): ...\n")
    code, out, _ = ft(capsys, "show", "Acme_Hinge")
    assert code == 0
    for part in ("acme-hinge 1.0", module, "finetooth-hooks>=2,<3", "loss:wedge  wedge", "observes  ft_step"):
        assert part in out
    code, _, err = ft(capsys, "show", "acme-hing")
    assert (code, err) == (2, "error: 'acme-hing' is not an installed plugin (did you mean acme-hinge?)\n")


def test_explain(site, loss_plugin, capsys) -> None:
    site.add("acme-hinge", loss_plugin("wedge"), files={"loss.py": LOSS})
    code, out, _ = ft(capsys, "explain", "loss:wedge")
    assert code == 0
    assert "full name  acme-hinge:wedge" in out
    assert "  margin: float = 1.0\n      How far the model must go." in out
    assert "needs      logprobs" in out
    code, _, err = ft(capsys, "explain", "loss:wedges")
    assert code == 2
    assert "no loss 'wedges'" in err
    assert "did you mean 'wedge'?" in err


def test_explain_says_what_is_ambiguous(site, loss_plugin, capsys) -> None:
    site.add("acme-one", loss_plugin("wedge"), files={"loss.py": LOSS})
    site.add("acme-two", loss_plugin("wedge"), files={"loss.py": LOSS})
    _, out, _ = ft(capsys, "explain", "wedge")
    assert "the bare name is ambiguous, acme-two:wedge has it too" in out
    assert "full name  acme-two:wedge" in out


def test_doctor_passes_a_sound_plugin(site, loss_plugin, capsys) -> None:
    site.add("acme-hinge", loss_plugin("wedge"), files={"loss.py": LOSS})
    code, out, err = ft(capsys, "doctor", "acme-hinge", "--fast")
    assert (code, err) == (0, "1 plugin, the newest change first: about 0 s\n")
    assert out.startswith("ok     acme-hinge 1.0")


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ({"requires": ["finetooth-hooks>=2,<3", "nonesuch>=2"]}, "it requires nonesuch>=2 (not installed)"),
        ({"requires": ["finetooth-hooks>=2,<3", "pluggy>=99"]}, "it requires pluggy>=99 ("),
        ({"requires": []}, "it does not say which version of finetooth-hooks it is made for"),
        ({"files": {}}, "loss:wedge fails the check builder_resolves"),
        (
            {"files": {"loss.py": LOSS.replace('"""How far the model must go."""', "")}},
            "loss:wedge fails the check options_are_documented",
        ),
        (
            {"files": {"loss.py": LOSS.replace("options: HingeOptions", "options: dict")}},
            "options_are_an_options_model",
        ),
    ],
)
def test_doctor_names_faults(site, loss_plugin, capsys, how, expected) -> None:
    site.add("acme-hinge", loss_plugin("wedge"), **{"files": {"loss.py": LOSS}, **how})
    code, out, err = ft(capsys, "doctor", "acme-hinge", "--fast")
    assert code == 2
    assert "FAULT  acme-hinge 1.0" in out
    assert expected in out
    assert "1 fault" in err


HALF_STOPPED = LOSS.replace(
    'outputs["logprobs"]), 0.0)', '0.5 * (outputs["logprobs"] + xp.stop_gradient(outputs["logprobs"]))), 0.0)'
)
SAYS_SO = "expected_failures={'gradient_is_the_slope': 'half of it is held constant'}"


def test_a_failure_that_the_entry_expects_is_a_note(site, loss_plugin, capsys) -> None:
    assert HALF_STOPPED != LOSS
    site.add("acme-hinge", loss_plugin("wedge", SAYS_SO), files={"loss.py": HALF_STOPPED})
    code, out, err = ft(capsys, "doctor", "acme-hinge")
    assert code == 0 and "fault" not in err
    note = "note: loss:wedge fails the check gradient_is_the_slope, as the plugin declares: half of it is held constant"
    assert note in out
    code, out, _ = ft(capsys, "explain", "loss:wedge")
    assert "fails      gradient_is_the_slope, on purpose: half of it is held constant" in out


@pytest.mark.parametrize(
    ("more", "loss", "expected"),
    [
        ("", HALF_STOPPED, "loss:wedge fails the check gradient_is_the_slope"),
        (SAYS_SO, LOSS, "passes, but was expected to fail: half of it is held constant"),
        ("expected_failures={'gradient_is_a_slope': 'why'}", LOSS, "near: 'gradient_is_the_slope'"),
        ("expected_failures={'gradient_is_the_slope': ' '}", LOSS, "['gradient_is_the_slope'] gives no reason"),
    ],
    ids=["unexpected", "passes", "no such check", "no reason"],
)
def test_doctor_holds_an_entry_to_what_it_expects(site, loss_plugin, capsys, more, loss, expected) -> None:
    site.add("acme-hinge", loss_plugin("wedge", more), files={"loss.py": loss})
    code, out, err = ft(capsys, "doctor", "acme-hinge")
    assert code == 2 and err.splitlines()[1:] == ["1 fault"]
    assert expected in out


def test_explain_shows_what_a_loss_reads(site, loss_plugin, capsys) -> None:
    more = "fields={'advantages', 'old_logprobs'}, scalars={'label'}"
    site.add("acme-hinge", loss_plugin("wedge", more), files={"loss.py": LOSS})
    _, out, _ = ft(capsys, "explain", "loss:wedge")
    assert "fields     advantages, old_logprobs\nscalars    label\n" in out


def test_doctor_names_clashes_and_leftovers(site, loss_plugin, capsys) -> None:
    site.add("acme-one", loss_plugin("wedge", "default=True"), files={"loss.py": LOSS})
    site.add("acme-two", loss_plugin("wedge", "default=True"), files={"loss.py": LOSS})
    (site.folder / "acme_one-0.9.dist-info").mkdir()
    code, out, _ = ft(capsys, "doctor", "acme-one", "--fast")
    assert code == 2
    assert "note: loss 'wedge' is also brought by acme-two:wedge" in out
    assert "declares itself the default, and so does" in out
    assert "a second installation is left over" in out


def test_doctor_looks_at_a_broken_plugin_that_the_user_named(site, capsys, tmp_path: Path, monkeypatch) -> None:
    file = tmp_path / "broken.py"
    file.write_text("1 / 0\n")
    for folder in (tmp_path, tmp_path.parent, site.folder):  # the file is told by its path from anywhere
        monkeypatch.chdir(folder)
        code, out, _ = ft(capsys, "doctor", str(file), "--plugins", str(file))
        assert code == 2
        assert "ZeroDivisionError" in out
    code, _, err = ft(capsys, "doctor", "acme-nothing")
    assert code == 2
    assert "'acme-nothing' is not an installed plugin" in err


# --- new --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Written:
    """What `ft plugins new` wrote, one folder a kind; nothing is touched in between."""

    folder: Path

    def python(self, *arguments: str) -> tuple[int, str]:
        """Run a module of Python in a process that sees all of them."""
        sources = os.pathsep.join(str(self.folder / kind / "src") for kind in SCAFFOLDS)
        command = [sys.executable, "-m", *arguments]
        where = {**os.environ, "PYTHONPATH": sources}
        done = subprocess.run(command, capture_output=True, text=True, env=where, cwd=self.folder, check=False)
        return done.returncode, done.stdout + done.stderr


@pytest.fixture
def written(site, loss_plugin, tmp_path: Path) -> Written:
    """A new plugin of every kind, from a catalog with one loss and one renderer."""
    from finetooth_core.plugins import manager

    site.add("acme-installed", loss_plugin("some") + "from finetooth_hooks import Renderer\n"
             "@hookimpl\ndef ft_renderers():\n    yield Renderer(name='plain', build='a:b')\n")  # fmt: skip
    catalog = manager.start().catalog
    for kind in SCAFFOLDS:
        create(f"acme-new-{kind}", kind, catalog, tmp_path / "new" / kind)
    return Written(tmp_path / "new")


NOT_HERE = (
    "transformers knows no causal model 'acme_new_family'",
    "it has no resume",
    "fewer than three steps",
    "it claims no path",  # the loader knows its models by a prefix
    "keeps no snapshots",
    "the engine does not claim",
    "the entry does not say can_disable",
    "it reads no part of its weight alone",
    "this process was not started as a rank",
    "the exporter keeps no runs",
    "the exporter takes everything",
)
"""Why a check may be skipped for a new plugin."""


@pytest.mark.slow
def test_every_template_passes_its_own_tests_and_the_kit(written: Written) -> None:
    """All kinds in one process."""
    code, said = written.python("pytest", "-q", "--import-mode=importlib", "-rs", str(written.folder))
    assert code == 0, said[-4000:]
    skipped = [line for line in said.splitlines() if line.startswith("SKIPPED")]
    assert not [line for line in skipped if not any(reason in line for reason in NOT_HERE)]


@pytest.mark.slow
def test_every_template_passes_the_doctor(written: Written) -> None:
    modules = [f"acme_new_{kind}.plugin" for kind in SCAFFOLDS]
    named = [part for module in modules for part in ("--plugins", module)]
    code, said = written.python("finetooth", "plugins", "doctor", *modules, *named)
    assert code == 0, said
    judged = [line.split()[:2] for line in said.splitlines() if line.startswith(("ok ", "FAULT "))]
    assert sorted(judged) == sorted(["ok", module] for module in modules)


def test_every_kind_has_a_template_whose_files_are_python(written: Written) -> None:
    assert set(SCAFFOLDS) == {*ENTRY_TYPES, "events"}
    for kind, scaffold in SCAFFOLDS.items():
        sources = written.folder / kind / f"src/acme_new_{kind}"
        assert {file.name for file in sources.iterdir()} == {
            "__init__.py", "plugin.py", "py.typed", f"{scaffold.module}.py"
        }  # fmt: skip
        for file in (written.folder / kind).rglob("*.py"):
            compile(file.read_text(), str(file), "exec")
        own = (written.folder / kind / f"tests/test_acme_new_{kind}.py").read_text()
        assert "assert " in own
        assert "def test_" in own


def test_new_plugins_import_what_the_contract_has(written: Written) -> None:
    for kind in SCAFFOLDS:
        for file in (written.folder / kind).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("finetooth_hooks"):
                    module = importlib.import_module(node.module)
                    for name in (alias.name for alias in node.names):
                        assert hasattr(module, name) or find_spec(f"{node.module}.{name}"), f"{file}: {name}"


def test_new_plugins_say_what_they_import(written: Written) -> None:
    """Whatever a new plugin imports at the top of a module is among its dependencies, or the contract's own."""
    known = {"PIL": "pillow", "finetooth_hooks": "finetooth-hooks"}
    given = {*sys.stdlib_module_names, "numpy", "pydantic"}  # the contract brings these two
    for kind in SCAFFOLDS:
        project = tomllib.loads((written.folder / kind / "pyproject.toml").read_text())["project"]
        declared = {re.split(r"[<>=]", dependency)[0] for dependency in project["dependencies"]}
        for file in (written.folder / kind / "src").rglob("*.py"):
            nodes = [node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.ImportFrom)]
            for module in {str(node.module).partition(".")[0] for node in nodes} - given - {f"acme_new_{kind}"}:
                assert known.get(module, module.replace("_", "-")) in declared, file


@pytest.mark.parametrize(
    ("name", "kind", "expected"),
    [
        ("acme-x", "losses", "--kind losses: no such kind"),
        ("acme-x", "los", "did you mean loss?"),
        ("Finetooth.Core", "loss", "'Finetooth.Core' is the name of an installed distribution"),
        ("acme-x", "backends", "did you mean backend?"),
        ("acme x", "loss", "'acme x' cannot name a plugin"),
        ("json", "loss", "'json' cannot name a plugin"),
        ("../x", "loss", "'../x' cannot name a plugin"),
    ],
)
def test_new_refuses(capsys, tmp_path: Path, monkeypatch, name: str, kind: str, expected: str) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = ft(capsys, "new", name, "--kind", kind)
    assert code == 2
    assert expected in err
    assert not list(tmp_path.iterdir())


def test_new_keeps_what_is_there(capsys, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, _ = ft(capsys, "new", "Acme_Polite", "--kind", "reward")
    assert code == 0
    assert (tmp_path / "acme-polite/src/acme_polite/reward.py").is_file()
    assert "acme-polite" in out
    code, _, err = ft(capsys, "new", "acme-polite", "--kind", "reward")
    assert code == 2
    assert "exists and is not empty" in err


# --- light ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [["--help"], ["plugins", "list"]])
def test_the_first_commands_import_nothing_heavy(arguments: list[str]) -> None:
    program = (
        "import sys\n"
        "from finetooth_core.cli import main\n"
        f"assert main({arguments!r}) == 0\n"
        "heavy = ['torch', 'transformers', 'datasets', 'mlx', 'pydantic', 'numpy', 'rich', 'yaml', 'packaging']\n"
        "print(*[name for name in heavy if name in sys.modules], file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stderr.split() == []
    assert "plugin" in done.stdout
