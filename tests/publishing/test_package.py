"""What is installed is the whole package, and nothing of what made the demo."""

import ast
import re

from setuptools import find_packages
from tiny import ROOT


PYPROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def imported(file):
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module


def test_every_module_is_installed():
    named = ast.literal_eval(re.search(r"^py-modules = (\[.*?\])", PYPROJECT, re.MULTILINE | re.DOTALL)[1])
    assert sorted(named) == sorted(file.stem for file in ROOT.glob("*_safeqwen.py"))
    assert 'include = ["safeqwen*"]' in PYPROJECT
    packages = find_packages(ROOT, include=["safeqwen*"])
    files = [file for name in ("safeqwen", "safeqwen_cli") for file in (ROOT / name).rglob("*.py")]
    code = {file.parent for file in files} - {ROOT / "safeqwen" / "demo"}  # data
    assert {ROOT.joinpath(*package.split(".")) for package in packages} == code


def test_the_package_imports_nothing_that_is_not_installed():
    for file in (ROOT / "safeqwen").rglob("*.py"):
        assert not {name.split(".")[0] for name in imported(file)} & {"tools", "scripts", "benchmarks", "tests"}, file
