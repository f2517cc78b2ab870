"""What --help says: every command tells what it reads and writes and gives an example that it understands."""

from __future__ import annotations

import re
import runpy
import shlex
import sys

import pytest

from pipelines.command import EXAMPLES, READS_AND_WRITES, SECTIONS
from tests.pipelines.small_run import PROJECT

SCRIPTS = ("run", "ingest", "captions", "embed", "dedup", "score", "selection", "export", "encode")
COMMANDS = [
    *[f"pipelines/{name}.py" for name in (*SCRIPTS, "takedown", "strips", "dashboard", "demo")],
    "pipelines/score.py calibrate",
    *[f"-m {name}" for name in ("train.run", "train.run base", "train.index", "train.data", "train.export")],
    *[
        f"-m {name}"
        for name in (
            "train.sample",
            "train.plan",
            "train.plan base",
            "train.evaluate",
            "train.evaluate base",
            "train.checkpoint",
            "curate.weights",
        )
    ],
]
LONGEST = 160
"""Lines; with every setting it would be several hundred."""


def help_of(command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """Run a command with --help in this process, which has imported most of it already; return what it printed."""
    words = shlex.split(command)
    words = words[1:] if words[0] == "-m" else words
    monkeypatch.setattr(sys, "argv", [*words, "--help"])
    monkeypatch.setattr(sys, "path", [str(PROJECT), *sys.path])
    with pytest.raises(SystemExit) as ended:
        if command.startswith("-m "):
            runpy.run_module(words[0], run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(str(PROJECT / words[0]), run_name="__main__")
    assert ended.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("command", COMMANDS)
def test_help_says_what_a_command_reads_and_writes_and_gives_an_example(command, monkeypatch, capsys):
    shown = help_of(command, monkeypatch, capsys)
    typed = f"python {command}"
    assert re.search(r"^reads    \S", shown, re.MULTILINE)
    assert re.search(r"^writes   \S", shown, re.MULTILINE)
    assert re.search(rf"^example  {re.escape(typed)}", shown, re.MULTILINE)
    assert shown.startswith(f"usage: {typed}")
    assert "exit codes: 0 done" in shown
    assert shown.count("\n") < LONGEST


def test_every_script_has_an_entry_and_no_entry_is_left_over():
    marked = 'if __name__ == "__main__":\n    sys.path[0]'
    scripts = {path.stem for path in (PROJECT / "pipelines").glob("*.py") if marked in path.read_text()}
    own = {"dashboard", "demo"}
    assert scripts - own == set(READS_AND_WRITES) - {"score calibrate"}
    assert set(EXAMPLES) == set(READS_AND_WRITES)
    assert set(SECTIONS) < scripts


@pytest.mark.parametrize("name", sorted(set(EXAMPLES) - {"score calibrate"}))
def test_the_examples_are_understood(name, tmp_path, monkeypatch, capsys):
    """Each one is read as typed, as far as the settings: `--print_config` ends it there."""
    (tmp_path / "darkroom.yaml").write_text("root: here\n")
    monkeypatch.chdir(tmp_path)
    script = str(PROJECT / "pipelines" / f"{name}.py")
    monkeypatch.setattr(sys, "argv", [script, *shlex.split(EXAMPLES[name]), "--print_config"])
    monkeypatch.setattr(sys, "path", [str(PROJECT), *sys.path])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(script, run_name="__main__")
    said = capsys.readouterr()
    assert ended.value.code == 0, said.err
    assert said.out.startswith("root: ")
