"""Judge, the actor for pipelines of one's own, by itself: no Ray here."""

import subprocess
import sys

import numpy as np
import pytest
from scanning import drawings

from safeqwen import SafetyPolicy
from safeqwen.scan import Judge
from safeqwen.scan.local import scan
from safeqwen.scan.ray import Tries
from safeqwen.scan.rows import FIELDS, read_rows, rows_schema


@pytest.fixture(scope="module")
def judge():
    return Judge(batch_size=2, num_workers=2)


def batch_of(*data, **others):
    column = np.empty(len(data), dtype=object)  # as Ray's numpy batches have bytes
    column[:] = data
    return {"id": np.array([f"picture {i}" for i in range(len(data))], dtype=object), "bytes": column, **others}


def test_a_batch_gives_the_rows_of_a_scan_of_the_same_pictures(judge, engine, tmp_path):
    paths = drawings(tmp_path / "in", 6)
    scan(engine, [str(tmp_path / "in")], tmp_path / "rows.jsonl", batch_size=2)
    table = judge(batch_of(*(path.read_bytes() for path in paths)))
    assert [*table.schema.names] == [*FIELDS]
    for row, expected in zip(table.to_pylist(), read_rows(tmp_path / "rows.jsonl")):
        differing = {name for name in FIELDS if row[name] != expected[name]}
        assert differing <= {"id", "seconds", "judged_at", "model_fingerprint"}
        assert len(row["model_fingerprint"]) == 64


def test_what_is_no_picture_is_an_error_in_its_row_and_the_others_keep_theirs(judge, tmp_path):
    first, second = (path.read_bytes() for path in drawings(tmp_path, 2))
    rows = judge(batch_of(b"", first, None, first[:200], second, np.ones(3), first)).to_pylist()
    assert [row["id"] for row in rows] == [f"picture {i}" for i in range(7)]
    assert [row["error"] is None for row in rows] == [False, True, False, False, True, False, True]
    assert "holds nothing" in rows[2]["error"] and "holds ndarray" in rows[5]["error"]
    assert all((row["label"] is None) == (row["error"] is not None) for row in rows)
    assert rows[1]["scores"] == rows[6]["scores"] != rows[4]["scores"]


def test_columns_of_ones_own_are_passed_on_and_may_not_be_taken_for_a_rows(judge, tmp_path):
    (path,) = drawings(tmp_path, 1)
    table = judge(batch_of(path.read_bytes(), None, shop=np.array([7, 8]), words=np.array(["a", "b"])))
    assert table.column_names == [*FIELDS, "shop", "words"] and table["shop"].to_pylist() == [7, 8]
    again = judge({"id": ["x"], "bytes": [path.read_bytes()], "n": np.array([[1, 2]])})
    assert again["n"].to_pylist() == [[1, 2]] and again["label"][0] == table["label"][0]
    with pytest.raises(ValueError, match="label: the rows have fields of this name"):
        judge(batch_of(None, label=np.array(["safe"])))
    with pytest.raises(ValueError, match="lacks bytes; it has id, image"):
        judge({"id": np.array(["a"]), "image": np.array([1])})


def test_all_batches_have_one_schema_whatever_is_in_them(judge, tmp_path):
    (path,) = drawings(tmp_path, 1)
    for batch in (batch_of(None), batch_of(path.read_bytes()), batch_of()):
        assert judge(batch).schema == rows_schema(judge.maker.categories, judge.maker.policy)


def test_a_policy_decides_and_one_of_another_taxonomy_is_refused(judge, tmp_path):
    policy = SafetyPolicy(categories=judge.engine.categories, unsafe_threshold=0.0)
    policy.save(tmp_path)
    (path,) = drawings(tmp_path / "in", 1)
    (row,) = Judge(policy=tmp_path)(batch_of(path.read_bytes())).to_pylist()
    assert row["decision"]["would_action"] != "allow" and row["policy_fingerprint"]
    with pytest.raises(ValueError, match="another taxonomy"):
        Judge(policy=SafetyPolicy(categories=["safe", "other"]))


def test_it_is_imported_without_ray():
    code = "import sys; sys.modules['ray'] = None; from safeqwen.scan import Judge"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_without_ray_the_engine_says_what_to_install(monkeypatch):
    from safeqwen.scan.cluster import connected

    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r"--engine ray needs Ray .*: pip install -e \"\.\[scan,ray\]\""):
        with connected():
            pass


def test_blocks_hold_every_item_once_in_order_and_grow_so_that_there_are_few():
    from safeqwen.scan.ray import SAME_SIZE, blocks_of

    assert [*blocks_of([], 4)] == [] and [*blocks_of(range(6), 4)] == [[[0, 1, 2, 3]], [[4, 5]]]
    blocks = [*blocks_of(range(1_000_000), 64)]
    assert [i for block in blocks for window in block for i in window] == [*range(1_000_000)]
    assert all(len(window) == 64 for block in blocks for window in block)
    assert {len(block) for block in blocks[:SAME_SIZE]} == {1} and len(blocks) < 1600


def test_a_window_is_put_off_after_its_tries_and_one_that_was_ended_between_is_not():
    """Windows 0, 64 and 128 of a block whose last one kills its actor each time: Ray begins the block anew."""
    tries = Tries(3)
    for _ in range(3):
        for position in (0, 64):
            assert tries.may_begin(position)
            tries.ended(position)
        assert tries.may_begin(128)
    assert tries.may_begin(0) and tries.may_begin(64) and not tries.may_begin(128)
