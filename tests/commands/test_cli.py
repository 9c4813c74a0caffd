"""The frame of the command `safeqwen`: it starts without torch, and runs as a module."""

import subprocess
import sys

from tiny import ROOT


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
