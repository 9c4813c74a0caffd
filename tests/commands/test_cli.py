"""The frame of the command `safeqwen`: it starts without torch, and runs as a module."""

import subprocess
import sys

import pytest
from tiny import ROOT

import safeqwen
from safeqwen_cli import main


def test_the_package_runs_as_the_command():
    done = subprocess.run([sys.executable, "-m", "safeqwen", "--help"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0 and done.stdout.startswith("usage: safeqwen")


def test_help_needs_neither_torch_nor_transformers():
    script = (
        "import sys, safeqwen_cli; safeqwen_cli.build_parser().format_help(); "
        "print({'torch', 'transformers', 'safeqwen'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "set()"


def test_the_version_is_that_of_the_package(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--version"])
    assert stopped.value.code == 0
    assert capsys.readouterr().out.split() == ["safeqwen", safeqwen.__version__]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ([], "safeqwen: the following arguments are required: COMMAND; see safeqwen --help"),
        (["judge"], "safeqwen judge: the following arguments are required: IMAGE; see safeqwen judge --help"),
        (["judge", "a.png", "--loud"], "safeqwen judge: unrecognized arguments: --loud; see safeqwen judge --help"),
        (["export", "\x1b[2J\na", "b", "c"], "safeqwen export: unrecognized arguments: c; see safeqwen export --help"),
        (
            ["check", "a", "--\x1b[2J\na"],
            "safeqwen check: unrecognized arguments: --?[2J?a; see safeqwen check --help",
        ),
        (
            ["evaluate", "--limit", "0"],
            "safeqwen evaluate: argument --limit: expected a whole number, 1 or more, got '0'; "
            "see safeqwen evaluate --help",
        ),
    ],
)
def test_wrong_usage_is_one_line_and_says_where_to_read_on(arguments, line, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert capsys.readouterr().err.replace("\N{REPLACEMENT CHARACTER}", "?") == f"{line}\n"
