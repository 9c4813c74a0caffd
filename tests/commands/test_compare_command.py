"""`safeqwen compare` on the terminal."""

import json
import sys

import pytest
from guard_rows import judged, six_rows, write_evaluation

import safeqwen.evaluation.compare as comparing
from safeqwen_cli import main


@pytest.fixture
def two_folders(tmp_path, monkeypatch):
    """Two evaluations of 60 rows: the second flags ten unsafe and thirty safe pictures that the first does not."""
    monkeypatch.setitem(comparing.compare.__kwdefaults__, "num_resamples", 100)
    kinds = [("safe", 0.1, 0.9)] * 30 + [("weapons", 0.1, 0.9)] * 10 + [("weapons", 0.9, 0.9)] * 20
    rows = [
        [
            judged(f"{i:02d}", [1 - unsafe[side], unsafe[side], 0], category, image_name=f"{i}.png")
            for i, (category, *unsafe) in enumerate(kinds)
        ]
        for side in (0, 1)
    ]
    return [str(write_evaluation(tmp_path / name, rows[side])) for side, name in enumerate("ab")]


def test_a_table_says_what_differs_surely_and_where(two_folders, tmp_path, capsys):
    out = tmp_path / "comparison.json"
    assert main(["compare", *two_folders, "--out", str(out)]) == 0
    shown, _ = capsys.readouterr()
    lines = shown.splitlines()
    assert lines[0] == "own: 60 rows are in all evaluations"
    assert lines[1] == f"  A  {two_folders[0]}, flagged from 0.5"
    assert lines[2].startswith("     ") and len(lines[2].split(", ")) == 1  # the model: no setting differs
    assert "guard, 60 rows of 60 pictures" in lines
    recall = next(line for line in lines if line.strip().startswith("recall "))
    assert "0.667 [" in recall and "1.000 [" not in recall and "+0.333 [+0." in recall
    assert recall.endswith("*")
    assert any(line.strip().startswith("false_positive_rate") and "+1.000" in line for line in lines)
    assert "decisions differ on 40 rows:" in lines and "  and 20 more: --out FILE writes all" in lines
    assert "  00  safe: A 0.100, B 0.900 flagged" in lines
    assert not any("refusals" in line for line in lines)  # nothing was asked
    written = json.loads(out.read_text())
    assert written["folders"] == two_folders and len(written["disagreements"]) == 40


def test_what_cannot_be_compared_is_said_in_one_line(two_folders, tmp_path, capsys):
    other = write_evaluation(tmp_path / "other", six_rows(), name="another")
    assert main(["compare", two_folders[0], str(other)]) == 2
    assert main(["compare", two_folders[0]]) == 2
    assert main(["compare", two_folders[0], str(tmp_path / "missing")]) == 2
    shown, said = capsys.readouterr()
    assert shown == "" and len(said.splitlines()) == 3
    assert all(line.startswith("safeqwen: ") for line in said.splitlines())


def test_a_file_that_cannot_be_written_gives_one(two_folders, tmp_path, capsys):
    assert main(["compare", *two_folders, "--out", str(tmp_path / "missing" / "out.json")]) == 1
    assert "could not be written" in capsys.readouterr().err


def test_a_missing_package_is_named(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "sklearn.metrics", None)
    for module in [name for name in sys.modules if name.startswith("safeqwen.evaluation.")]:
        monkeypatch.delitem(sys.modules, module)
    assert main(["compare", "a", "b"]) == 2
    assert 'pip install -e ".[evaluate]"' in capsys.readouterr().err
