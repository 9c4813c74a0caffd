"""The ledger holds what was finished, once, and refuses to be another scan's."""

import contextlib
import json
import os
import signal
import sqlite3
import tempfile
from pathlib import Path

import numpy as np
import pytest
from scanning import as_nobody

from safeqwen.scan.ledger import Judged, Ledger, read_record


ABOUT = {
    "sources": ["a"],
    "model_fingerprint": "m",
    "categories": ["safe", "suicide"],
    "dtype": "float32",
    "max_pixels": None,
    "policy": None,
}
SHA = bytes(range(32))


def judged(probs=((0.75, 0.25),), perceptual_hash=None):
    return Judged(np.array(probs, "f4"), list(range(len(probs))), 30, 20, perceptual_hash, 0.5, "2026-01-01T00:00:00")


def places(ledger):
    return [(id, error, found and found.probs.tolist()) for id, _, _, error, found in ledger.places()]


def test_a_place_is_there_once_with_what_is_new_of_it_and_in_the_order_of_the_sources(tmp_path):
    with Ledger(tmp_path / "l", ABOUT) as ledger:
        ledger.add_verdict(SHA, judged())
        ledger.add_place("b", None, 1, sha256=SHA)
        ledger.add_place("a", None, 0, error="gone")
        ledger.add_place("a", None, 0, sha256=SHA)
        assert places(ledger) == [("a", None, [[0.75, 0.25]]), ("b", None, [[0.75, 0.25]])]
        assert ledger.counts() == (2, 0)


def test_a_place_that_is_named_twice_stays_where_it_was_first_but_not_in_the_next_pass(tmp_path):
    with Ledger(tmp_path / "l", ABOUT) as ledger:
        for position, id in enumerate(("a", "b", "a")):
            ledger.add_place(id, "1", position, error="gone")
        assert [id for id, *_ in ledger.places()] == ["a", "b"]
        ledger.end_pass()
        for position, id in enumerate(("b", "a", "b")):
            assert not ledger.has_met(id, "2", position)  # as if none was through yet
        for position, id in enumerate(("b", "a", "b")):
            ledger.add_place(id, "2", position, error="gone")
        assert [id for id, *_ in ledger.places()] == ["b", "a"]


def test_a_place_that_no_source_holds_any_more_leaves_the_ledger_with_the_pass(tmp_path):
    with Ledger(tmp_path / "l", ABOUT) as ledger:
        ledger.add_verdict(SHA, judged())
        for position, id in enumerate(("a", "b")):
            ledger.add_place(id, "1", position, sha256=SHA)
        ledger.end_pass()
        assert ledger.has_met("b", "1", 0)
        ledger.end_pass()
    with contextlib.closing(sqlite3.connect(tmp_path / "l")) as sql:
        assert sql.execute("SELECT id FROM places").fetchall() == [("b",)]


def test_a_place_cannot_speak_of_a_verdict_that_is_not_there_nor_have_neither_nor_both(tmp_path):
    with Ledger(tmp_path / "l", ABOUT) as ledger:
        with pytest.raises(sqlite3.IntegrityError):
            ledger.add_place("a", None, 0, sha256=SHA)
        with pytest.raises(sqlite3.IntegrityError):
            ledger.add_place("a", None, 0)


def test_what_is_known_moves_to_where_the_sources_have_it_now(tmp_path):
    with Ledger(tmp_path / "l", ABOUT) as ledger:
        ledger.add_verdict(SHA, judged())
        for position, id in enumerate(("a", "b", "c")):
            ledger.add_place(id, "1", position, sha256=SHA)
        ledger.end_pass()
        assert all(ledger.has_met(id, "1", position) for position, id in enumerate(("c", "a", "b")))
        assert [id for id, *_ in ledger.places()] == ["c", "a", "b"]


def test_what_was_committed_outlives_the_process_and_the_rest_is_looked_at_again(tmp_path):
    child = os.fork()
    if child == 0:
        with Ledger(tmp_path / "l", ABOUT) as ledger:
            ledger.add_place("kept", "1", 0, error="x")
            ledger.commit()
            ledger.add_place("lost", "1", 1, error="x")
            os.kill(os.getpid(), signal.SIGKILL)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    with Ledger(tmp_path / "l", ABOUT) as ledger:
        assert ledger.has_met("kept", "1", 0) and not ledger.has_met("lost", "1", 1)


def test_a_new_pass_keeps_verdicts_looks_again_at_errors_and_changes_and_forgets_what_is_gone(tmp_path):
    with Ledger(tmp_path / "l", ABOUT) as ledger:
        ledger.add_verdict(SHA, judged())
        for position, id in enumerate(("same", "changed", "gone")):
            ledger.add_place(id, "1", position, sha256=SHA)
        ledger.add_place("error", "1", 3, error="x")
        assert all(ledger.has_met(id, "1", 0) for id in ("same", "changed", "gone", "error"))
        ledger.end_pass()
    with Ledger(tmp_path / "l", ABOUT) as ledger:
        assert places(ledger) == []
        assert ledger.has_met("same", "1", 7)
        assert not ledger.has_met("changed", "2", 1) and not ledger.has_met("error", "1", 3)
        assert places(ledger) == [("same", None, [[0.75, 0.25]])]
        ledger.end_pass()
    rows = sqlite3.connect(tmp_path / "l").execute("SELECT id FROM places").fetchall()
    assert rows == [("same",)]


@pytest.mark.parametrize(
    "name, value, way_on",
    [
        ("model_fingerprint", "n", "another --out"),
        ("max_pixels", 5000, "another --out"),
        ("dtype", "bfloat16", "another --out"),
        ("policy", {"version": 1}, "--reuse"),
        ("sources", ["b"], "--reuse"),
    ],
)
def test_another_scan_is_refused_with_what_differs(tmp_path, name, value, way_on):
    with Ledger(tmp_path / "l", ABOUT):
        pass
    with pytest.raises(ValueError, match=f"another scan: {name} is .*, there it was .*{way_on}") as refusal:
        with Ledger(tmp_path / "l", {**ABOUT, name: value}):
            pass
    assert ("--reuse" in str(refusal.value)) == (way_on == "--reuse")


def test_a_second_process_and_a_file_that_is_no_ledger_are_refused(tmp_path):
    with Ledger(tmp_path / "l", ABOUT):
        with pytest.raises(ValueError, match="another process writes"):
            Ledger(tmp_path / "l", ABOUT).__enter__()
    (tmp_path / "words").write_text("no database, but words enough to fill a header" * 40)
    with pytest.raises(ValueError, match="is no ledger"):
        Ledger(tmp_path / "words", ABOUT).__enter__()
    other = sqlite3.connect(tmp_path / "other")
    other.execute("CREATE TABLE things (x)")
    other.commit()
    other.close()
    with pytest.raises(ValueError, match="another program's"):
        Ledger(tmp_path / "other", ABOUT).__enter__()


def test_verdicts_are_taken_over_from_a_ledger_of_the_same_model_alone(tmp_path):
    with Ledger(tmp_path / "old", ABOUT) as old:
        old.add_verdict(SHA, judged())
    with Ledger(tmp_path / "new", {**ABOUT, "policy": {"version": 1}}) as new:
        new.reuse(tmp_path / "old")
        assert new.known() == {SHA} and new.knows(SHA) and not new.knows(bytes(32))
        new.add_place("a", None, 0, sha256=SHA)
        assert places(new) == [("a", None, [[0.75, 0.25]])]
    (tmp_path / "old").unlink()
    with Ledger(tmp_path / "new", {**ABOUT, "policy": {"version": 1}}) as new:
        assert new.knows(SHA) and new.known() == {SHA}, "it is its own now"
    with Ledger(tmp_path / "third", {**ABOUT, "max_pixels": 5000}) as third:
        with pytest.raises(ValueError, match="max_pixels is 5000, there it was null"):
            third.reuse(tmp_path / "new")
        with pytest.raises(ValueError, match="there is no ledger"):
            third.reuse(tmp_path / "nowhere")


def test_a_ledger_that_nobody_writes_to_is_read_where_nothing_can_be_written():
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as other:
        folder, other = Path(folder), Path(other)
        with Ledger(folder / "old.ledger", ABOUT) as ledger:
            ledger.add_verdict(SHA, judged())
        folder.chmod(0o555)
        other.chmod(0o777)
        with as_nobody():
            assert read_record(folder / "old")["sources"] == ["a"]
            with Ledger(other / "new.ledger", ABOUT) as ledger:
                ledger.reuse(folder / "old.ledger")
                assert ledger.knows(SHA)
            with pytest.raises(
                OSError, match=r"could not be written \(Permission denied\): .*let this user write there"
            ):
                Ledger(folder / "new.ledger", ABOUT).__enter__()
        folder.chmod(0o755)


def test_a_scan_is_refused_while_another_reads_its_ledger(tmp_path, monkeypatch):
    with Ledger(tmp_path / "old", ABOUT) as old:
        old.add_verdict(SHA, judged())
    connect = sqlite3.connect
    with Ledger(tmp_path / "new", ABOUT) as new:
        new.reuse(tmp_path / "old")
        assert new.knows(SHA)
        monkeypatch.setattr(sqlite3, "connect", lambda *args, **kwargs: connect(*args, **kwargs, timeout=0))
        with pytest.raises(OSError, match="wait for the process that reads it, and start the same command again"):
            Ledger(tmp_path / "old", ABOUT).__enter__()


def test_the_record_says_what_a_scan_was_of(tmp_path):
    with Ledger(tmp_path / "rows.jsonl.ledger", ABOUT, made={"model": "demo"}):
        record = read_record(tmp_path / "rows.jsonl")  # also while it runs
    assert record["made"] == {"model": "demo"} and record["sources"] == ["a"]
    assert json.dumps(record)
    with pytest.raises(ValueError, match="there is no"):
        read_record(tmp_path / "others.jsonl")
