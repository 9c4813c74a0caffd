"""What the tests of scanning share: drawings, the demo's engine, and what a scan wrote."""

import pytest

from safeqwen import load
from safeqwen.judging.engine import Engine
from safeqwen.scan.rows import read_rows
from tools.demo.pictograms import draw


SEED = 5_000_000
HARMS = ("safe", "suicide", "weapon_related_violence", "drug_related_hazards", "terrorism")


def drawings(folder, num_pictures, seed=SEED, suffix=".png"):
    """Writes that many different small drawings, and returns their paths (`list[Path]`)."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{i:03d}{suffix}" for i in range(num_pictures)]
    for i, path in enumerate(paths):
        draw(HARMS[i % len(HARMS)], seed + i, size=84).save(path)
    return paths


def rows_of(out):
    """Rows by id (`dict`), each id once."""
    rows = list(read_rows(out))
    assert len({row["id"] for row in rows}) == len(rows)
    return {row["id"]: row for row in rows}


def without_time(rows):
    return [{name: value for name, value in row.items() if name not in ("seconds", "judged_at")} for row in rows]


@pytest.fixture(scope="session")
def engine():
    """The demo's, which counts the pictures that the model saw in `engine.num_judged`."""
    engine = Engine(*load())
    engine.num_judged = 0
    judge = engine._judge_batch

    def counted(frames):
        engine.num_judged += len(frames)
        return judge(frames)

    engine._judge_batch = counted
    return engine
