"""The notebooks run from top to bottom, in this interpreter, and keep no outputs that could grow old."""

import json
import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest


ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.fixture
def executed(tmp_path, monkeypatch):
    """A function that runs a notebook as if in its own folder, and returns it with its outputs."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "runtime"))
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # what the notebooks write goes with the test

    def execute(path):
        script = Path(__file__).with_name("execute_notebook.py")
        command = [sys.executable, script, path, tmp_path / "executed.ipynb"]
        ran = subprocess.run(command, capture_output=True, text=True, check=False)
        assert ran.returncode == 0, ran.stderr
        return nbformat.read(tmp_path / "executed.ipynb", as_version=4)

    return execute


def outputs_of(notebook, kind):
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    return [output.data[kind] for output in outputs if kind in output.get("data", {})]


def test_there_are_three_notebooks():
    assert len(NOTEBOOKS) == 3


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_from_top_to_bottom_and_shows_verdicts(path, executed):
    before = {entry: entry.stat().st_mtime for entry in (ROOT / "notebooks").iterdir()}
    notebook = executed(path)
    assert any('class="safeqwen"' in html for html in outputs_of(notebook, "text/html"))
    assert {entry: entry.stat().st_mtime for entry in (ROOT / "notebooks").iterdir()} == before


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_kept_without_outputs_and_says_what_the_demo_knows(path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells)
    assert "knows drawings, not photographs, and is not for moderation" in "".join(cells[0]["source"])
