"""Rows of drawings, to train on and to evaluate on."""

import json

import pytest
from small_runs import NAMES, write_rows


@pytest.fixture(scope="session")
def rows(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rows")
    # 21 rows do not fill their last step of 4.
    return {"data": write_rows(folder / "train", 21, 0), "eval": write_rows(folder / "eval", 9, 100)}


@pytest.fixture(scope="session")
def pairs(tmp_path_factory):
    """As `rows`, each row with a second picture: of every other row, both are labelled by themselves."""
    folder = tmp_path_factory.mktemp("pairs")
    file = write_rows(folder, 8, 0)
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    for i, row in enumerate(lines):
        row["images"].append(f"images/{(i + 1) % 8}.png")
        if i % 2:
            row["picture_categories"] = [NAMES[i % 4], None if i == 5 else NAMES[(i + 1) % 4]]
    file.write_text("".join(json.dumps(row) + "\n" for row in lines))
    return {"data": file, "eval": file}
