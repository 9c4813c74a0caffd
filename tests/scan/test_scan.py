"""A scan: exactly one row a picture, whatever the pictures are and whenever it stops."""

import base64
import contextlib
import hashlib
import http.server
import json
import os
import random
import shutil
import signal
import tarfile
import threading
import time
import zipfile
from collections import Counter
from dataclasses import replace

import pyarrow
import pytest
import torch
from PIL import Image
from pyarrow import parquet
from scanning import drawings, rows_of, without_time

from safeqwen import SafetyPolicy, read_image
from safeqwen.scan import keep, local
from safeqwen.scan.items import Item, judge_items
from safeqwen.scan.ledger import read_record
from safeqwen.scan.local import sample, scan
from safeqwen.scan.rows import is_flagged, read_rows
from safeqwen.scan.sources import Access, Place, read_place


@pytest.fixture
def pictures(tmp_path):
    drawings(tmp_path / "in", 12)
    return tmp_path / "in"


def run(engine, source, out, **kwargs):
    return scan(engine, [str(source)], out, **{"batch_size": 2, "num_workers": 2, **kwargs})


def policy_of(engine, **kwargs):
    return SafetyPolicy(categories=engine.categories, **kwargs)


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_a_row_is_the_models_verdict_on_that_picture(engine, pictures, tmp_path, suffix):
    policy = policy_of(engine, unsafe_threshold=0.3)
    frames = [Image.open(pictures / name).convert("RGB") for name in ("000.png", "001.png")]
    frames[0].save(pictures / "moving.gif", save_all=True, append_images=frames[1:])
    summary = run(engine, pictures, tmp_path / f"rows{suffix}", policy=policy, model_fingerprint="f" * 64)
    assert (summary.num_rows, summary.num_errors) == (13, 0)
    rows = rows_of(tmp_path / f"rows{suffix}")
    assert [*rows] == [str(path) for path in sorted(pictures.iterdir())]
    for id, row in rows.items():
        views = read_image(id)
        probs = torch.stack(engine.judge(engine.prepare(views)))  # one picture, not a batch of several sizes
        worst = int((1 - probs[:, 0]).argmax())
        assert [*row["scores"].values()] == pytest.approx(probs[worst].tolist(), abs=1e-5)
        assert row["label"] == engine.categories[int(probs[worst].argmax())]
        assert row["unsafe"] == pytest.approx(1 - float(probs[worst, 0]), abs=1e-5)
        assert row["frames"] == len(views) and (row["width"], row["height"]) == views[0].size
        assert row["decision"]["action"] == policy.decide(probs, range(len(views))).action
        assert row["num_bytes"] == os.path.getsize(id) and row["model_fingerprint"] == "f" * 64
        assert (row["views"] is None) == (len(views) == 1)
    assert len(rows[str(pictures / "moving.gif")]["views"]) == 2
    assert rows[str(pictures / "moving.gif")]["perceptual_hash"] is None


def test_two_views_of_one_frame_have_its_number(engine, tmp_path):
    drawing = Image.new("RGBA", (60, 60), (0, 0, 0, 0))  # seen on white and on black paper
    drawing.paste((128, 128, 128, 255), (10, 10, 50, 50))
    (tmp_path / "in").mkdir()
    drawing.save(tmp_path / "in" / "0.png")
    run(engine, tmp_path / "in", tmp_path / "rows.jsonl")
    ((_, row),) = rows_of(tmp_path / "rows.jsonl").items()
    assert [view["frame"] for view in row["views"]] == [0, 0] and row["frames"] == 2


def test_bad_files_are_one_error_row_each_and_the_others_are_judged(engine, pictures, tmp_path):
    good = (pictures / "000.png").read_bytes()
    for name, data in (("cut.png", good[: len(good) // 2]), ("empty.png", b""), ("foreign.heic", b"ftypheic")):
        (pictures / name).write_bytes(data)
    (pictures / "huge.png").write_bytes(b"\0" * (64 * 2**20 + 1))
    os.mkfifo(pictures / "pipe.png")
    with open(os.fsencode(pictures) + b"/caf\xe9.png", "wb") as file:
        file.write(good)
    summary = run(engine, pictures, tmp_path / "rows.jsonl")
    rows = rows_of(tmp_path / "rows.jsonl")
    errors = {os.path.basename(id): row["error"] for id, row in rows.items() if row["error"]}
    assert {*errors} == {"cut.png", "empty.png", "foreign.heic", "huge.png", "pipe.png"}
    assert (summary.num_rows, summary.num_errors) == (18, 5)
    assert "ends before the picture does" in errors["cut.png"] and "larger than" in errors["huge.png"]
    for row in rows.values():
        if row["error"]:
            assert row["label"] is row["unsafe"] is row["scores"] is row["decision"] is row["frames"] is None
            with pytest.raises(ValueError, match="there is no verdict"):
                is_flagged(row)


def test_copies_are_judged_once_also_in_a_later_scan_and_of_another_policy(engine, pictures, tmp_path):
    for i in range(12):
        shutil.copy(pictures / "003.png", pictures / f"003_{i}.png")
    (pictures / "bad.png").write_bytes(b"no picture")
    shutil.copy(pictures / "bad.png", pictures / "bad_too.png")
    before = engine.num_judged
    first = run(engine, pictures, tmp_path / "a.jsonl")
    assert engine.num_judged - before == 12
    assert (first.counts.num_judged, first.counts.num_copies, first.num_errors) == (12, 12, 2)
    errors = [row["error"] for row in read_rows(tmp_path / "a.jsonl") if row["error"]]
    assert errors[0] == errors[1], "the reason is the picture's, without a name"

    again = run(engine, pictures, tmp_path / "a.jsonl")
    assert (again.counts.num_known, again.counts.num_judged) == (24, 0)
    policy = policy_of(engine, unsafe_threshold=0.9)
    with pytest.raises(ValueError, match="policy is .*--reuse"):
        run(engine, pictures, tmp_path / "a.jsonl", policy=policy)
    run(engine, pictures, tmp_path / "b.jsonl", policy=policy, reuse=tmp_path / "a.jsonl.ledger")
    assert engine.num_judged - before == 12
    rows, others = rows_of(tmp_path / "a.jsonl"), rows_of(tmp_path / "b.jsonl")
    assert {id: row["scores"] for id, row in rows.items()} == {id: row["scores"] for id, row in others.items()}
    assert all(row["decision"] for row in others.values() if not row["error"])


def test_a_scan_again_takes_in_what_is_new_changed_or_mended_and_drops_what_is_gone(engine, pictures, tmp_path):
    (pictures / "late.png").write_bytes(b"")
    run(engine, pictures, tmp_path / "rows.jsonl")
    (pictures / "000.png").unlink()
    shutil.copy(pictures / "001.png", pictures / "002.png")  # changed
    shutil.copy(pictures / "003.png", pictures / "late.png")  # mended
    drawings(tmp_path / "more", 1, seed=9)[0].rename(pictures / "new.png")
    before = engine.num_judged
    summary = run(engine, pictures, tmp_path / "rows.jsonl")
    assert engine.num_judged - before == 1 and summary.num_errors == 0
    rows = rows_of(tmp_path / "rows.jsonl")
    assert [*rows] == [str(path) for path in sorted(pictures.iterdir())]
    assert rows[str(pictures / "002.png")]["scores"] == rows[str(pictures / "001.png")]["scores"]


def test_rows_that_lie_among_the_pictures_are_not_scanned(engine, pictures):
    for _ in range(2):
        summary = run(engine, pictures, pictures / "rows.parquet")
        assert (summary.num_rows, summary.num_errors) == (12, 0)


def test_near_identical_pictures_are_a_group_and_one_that_disagrees_is_shown(engine, pictures, tmp_path):
    drawing = Image.open(pictures / "000.png").convert("RGB")
    drawing.resize((48, 48)).save(pictures / "000_small.png")
    shutil.copy(pictures / "002.png", pictures / "002_copy.png")
    run(engine, pictures, tmp_path / "a.jsonl")
    rows = rows_of(tmp_path / "a.jsonl")
    groups = {os.path.basename(id): row["group"] for id, row in rows.items() if row["group"]}
    assert groups == {"000.png": 1, "000_small.png": 1, "002.png": 2, "002_copy.png": 2}
    # A threshold between the two sizes' probabilities makes their decisions differ.
    pair = sorted(row["unsafe"] for id, row in rows.items() if row["group"] == 1)
    assert pair[0] < pair[1]
    policy = policy_of(engine, unsafe_threshold=sum(pair) / 2)
    summary = run(engine, pictures, tmp_path / "b.jsonl", policy=policy)
    assert summary.num_groups == 2 and summary.num_disagreeing == 1 and {*summary.disagreeing} == {1}
    assert {*summary.disagreeing[1]} == {True, False}
    disagrees = {row["group"]: row["group_disagrees"] for row in read_rows(tmp_path / "b.jsonl")}
    assert disagrees == {None: None, 1: True, 2: False}


# ------------------------------------------------------------------------------------------------------- interruptions


class Stopped(Exception):
    pass


def killer(after):
    return lambda counts: counts.num_met >= after and os.kill(os.getpid(), signal.SIGKILL)


def test_a_scan_that_is_killed_anywhere_goes_on_and_gives_the_rows_of_one_that_was_not(engine, pictures, tmp_path):
    drawings(pictures / "more", 12, seed=6_000_000)
    shutil.copy(pictures / "001.png", pictures / "more" / "copy.png")
    (pictures / "bad.png").write_bytes(b"")
    run(engine, pictures, tmp_path / "whole.jsonl")
    whole = list(read_rows(tmp_path / "whole.jsonl"))

    killed = 0
    for after in range(1, 27, 4):
        out = tmp_path / f"rows_{after}.jsonl"
        child = os.fork()
        if child == 0:
            run(engine, pictures, out, progress=killer(after), num_workers=0)
            os._exit(0)
        killed += os.waitpid(child, 0)[1] == signal.SIGKILL
        assert not out.exists()
        before = engine.num_judged
        summary = run(engine, pictures, out)
        assert engine.num_judged - before == summary.counts.num_judged <= 24
        assert without_time(read_rows(out)) == without_time(whole)
    assert killed == 7


def test_kills_at_random_moments_of_one_scan_give_the_rows_of_an_undisturbed_one(engine, tmp_path):
    folder, rng = tmp_path / "in", random.Random(0)
    paths = drawings(folder, 90, seed=7_000_000)
    for i, path in enumerate(paths[:4]):
        shutil.copy(path, folder / f"{i:03d}_copy.png")
        Image.open(path).resize((60, 60)).save(folder / f"{i:03d}_small.png")
        moving = [Image.open(paths[j]).convert("RGB") for j in range(i, i + 4)]
        moving[0].save(folder / f"{i:03d}_moving.gif", save_all=True, append_images=moving[1:])
        (folder / f"{90 + i}_bad.png").write_bytes(path.read_bytes()[: 300 * i])
    started = time.monotonic()
    run(engine, folder, tmp_path / "whole.jsonl")
    seconds = time.monotonic() - started
    whole = without_time(read_rows(tmp_path / "whole.jsonl"))
    assert len(whole) == 106 and sum(row["error"] is not None for row in whole) == 4

    out, num_killed = tmp_path / "rows.jsonl", 0
    for left in range(8, 0, -1):
        child = os.fork()
        if child == 0:
            run(engine, folder, out)
            os._exit(0)
        time.sleep(rng.uniform(0, 2 * seconds / left))
        os.kill(child, signal.SIGKILL)
        num_killed += os.waitpid(child, 0)[1] == signal.SIGKILL
        if out.exists():  # it may have been killed behind the end
            assert without_time(read_rows(out)) == whole
    assert num_killed
    run(engine, folder, out)
    assert without_time(read_rows(out)) == whole


def test_a_picture_that_is_listed_twice_is_one_row_at_its_first_place_wherever_the_scan_was_stopped(
    engine, pictures, tmp_path
):
    names = [f"in/{i:03d}.png" for i in (0, 1, 0, 2, 3, 4, 5, 6, 7, 8, 1, 9, 2)]
    (tmp_path / "list.txt").write_text("\n".join(names))
    expected = [str(tmp_path / name) for name in dict.fromkeys(names)]

    def stop(counts):
        if counts.num_met >= after:
            raise Stopped

    for after in (2, 9, 12, 99):
        out = tmp_path / f"rows{after}.jsonl"
        with contextlib.suppress(Stopped):
            run(engine, tmp_path / "list.txt", out, progress=stop)
        run(engine, tmp_path / "list.txt", out)
        assert [*rows_of(out)] == expected


def test_an_exception_anywhere_keeps_what_was_finished(engine, pictures, tmp_path):
    def stop(counts):
        if counts.num_met == 9:
            raise Stopped

    with pytest.raises(Stopped):
        run(engine, pictures, tmp_path / "rows.jsonl", progress=stop)
    assert not (tmp_path / "rows.jsonl").exists()
    with pytest.raises(ValueError, match="the scan has not ended"):
        list(read_rows(tmp_path / "rows.jsonl"))
    summary = run(engine, pictures, tmp_path / "rows.jsonl")
    assert summary.num_rows == 12 and summary.counts.num_known == 8


def test_a_scan_that_judges_nothing_keeps_what_it_found_too(engine, tmp_path, monkeypatch):
    (tmp_path / "in").mkdir()
    for i in range(9):
        (tmp_path / "in" / f"{i}.png").symlink_to("nowhere.png")

    def stop(counts):
        if counts.num_errors == 6:
            raise Stopped

    monkeypatch.setattr(keep, "SECONDS_BETWEEN_COMMITS", 0)
    with pytest.raises(Stopped):
        run(engine, tmp_path / "in", tmp_path / "rows.jsonl", progress=stop, num_workers=0)
    summary = run(engine, tmp_path / "in", tmp_path / "rows.jsonl")
    assert (summary.counts.num_known, summary.num_errors) == (5, 9)


def test_the_same_words_in_another_folder_or_for_another_column_are_another_scan(engine, tmp_path, monkeypatch):
    for name in ("a", "b"):
        drawings(tmp_path / name / "in", 2)
        (tmp_path / name / "list.jsonl").write_text('{"front": "in/000.png", "back": "in/001.png"}\n')
    monkeypatch.chdir(tmp_path / "a")
    run(engine, "list.jsonl", tmp_path / "rows.jsonl", access=Access(column="front"))
    with pytest.raises(ValueError, match='column is "back", there it was "front"'):
        run(engine, "list.jsonl", tmp_path / "rows.jsonl", access=Access(column="back"))
    monkeypatch.chdir(tmp_path / "b")
    with pytest.raises(ValueError, match="sources is .*/b/list.jsonl.*, there it was .*/a/list.jsonl"):
        run(engine, "list.jsonl", tmp_path / "rows.jsonl", access=Access(column="front"))


def test_a_full_disk_while_rows_are_written_leaves_the_old_rows_and_the_ledger(
    engine, pictures, tmp_path, monkeypatch
):
    out = tmp_path / "rows.jsonl"
    run(engine, pictures, out)
    old = out.read_bytes()
    (pictures / "000.png").unlink()
    monkeypatch.setattr(os, "fsync", lambda descriptor: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space left"):
        run(engine, pictures, out)
    monkeypatch.undo()
    assert out.read_bytes() == old and not (tmp_path / ".rows.jsonl.partial").exists()
    assert run(engine, pictures, out).counts.num_judged == 0
    assert len(rows_of(out)) == 11


def test_an_output_that_is_no_rows_of_ours_is_refused(engine, pictures, tmp_path):
    (tmp_path / "full.jsonl").symlink_to("/dev/full")
    with pytest.raises(ValueError, match="is no file"):
        run(engine, pictures, tmp_path / "full.jsonl")
    (tmp_path / "mine.jsonl").write_text("{}\n")
    with pytest.raises(ValueError, match="without mine.jsonl.ledger"):
        run(engine, pictures, tmp_path / "mine.jsonl")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="there is no picture"):
        run(engine, tmp_path / "empty", tmp_path / "none.jsonl")
    assert not (tmp_path / "none.jsonl").exists()


# ---------------------------------------------------------------------------------------------------- other sources


class Hanging(http.server.BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def do_GET(self):
        if self.path == "/hangs.png":
            time.sleep(3)
            return
        self.send_response(200)
        self.end_headers()
        self.wfile.write(self.server.picture)


def test_a_url_that_hangs_is_an_error_and_holds_nothing_up(engine, pictures, tmp_path):
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hanging) as server:
        server.daemon_threads = True
        server.picture = (pictures / "001.png").read_bytes()
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        base = f"http://127.0.0.1:{server.server_address[1]}"
        (tmp_path / "list.txt").write_text(f"{base}/hangs.png\n{base}/a.png\nin/001.png\n")
        started = time.monotonic()
        access = Access(timeout_s=0.5, private_networks=True)
        run(engine, tmp_path / "list.txt", tmp_path / "rows.jsonl", access=access)
        assert time.monotonic() - started < 2.5
        server.shutdown()
    hangs, fetched, read = rows_of(tmp_path / "rows.jsonl").values()
    assert "gave no whole picture within 0.5 s" in hangs["error"]
    assert fetched["id"] == f"{base}/a.png" and fetched["scores"] == read["scores"]


def test_the_record_of_a_url_has_no_key_and_tells_it_from_another(engine, pictures, tmp_path):
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hanging) as server:
        server.picture = (pictures / "001.png").read_bytes()
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        host = f"127.0.0.1:{server.server_address[1]}"
        url, access = f"http://me:secret@{host}/a.png?sig=secret", Access(private_networks=True)
        assert run(engine, url, tmp_path / "rows.jsonl", access=access).num_errors == 0
        server.shutdown()
    (recorded,) = read_record(tmp_path / "rows.jsonl")["sources"]
    assert recorded.startswith(f"http://{host}/a.png") and "secret" not in recorded
    with pytest.raises(ValueError, match="sources is") as refusal:
        run(engine, url.replace("sig=", "sig=no "), tmp_path / "rows.jsonl", access=access)
    assert "secret" not in str(refusal.value)


def test_members_of_archives_have_the_verdicts_of_the_same_files(engine, pictures, tmp_path):
    shutil.make_archive(tmp_path / "shard", "tar", pictures)
    shutil.make_archive(tmp_path / "packed", "zip", pictures)
    run(engine, pictures, tmp_path / "files.jsonl")
    expected = {row["picture_sha256"]: row["scores"] for row in read_rows(tmp_path / "files.jsonl")}
    for name in ("shard.tar", "packed.zip"):
        run(engine, tmp_path / name, tmp_path / f"{name}.jsonl")
        rows = rows_of(tmp_path / f"{name}.jsonl")
        assert {row["picture_sha256"] for row in rows.values()} == {*expected}
        for id, row in rows.items():
            assert [*row["scores"].values()] == pytest.approx([*expected[row["picture_sha256"]].values()], abs=1e-5)
            assert len(read_place(id)) == row["num_bytes"]


@pytest.mark.parametrize("kind", ["tar", "tar.gz", "zip", "parquet"])
def test_what_is_in_a_file_that_changed_is_looked_at_again(engine, pictures, tmp_path, kind):
    def pack(names):
        files = {f"{i}.png": pictures / name for i, name in enumerate(names)}
        if kind == "zip":
            with zipfile.ZipFile(tmp_path / "in.zip", "w") as archive:
                for name, path in files.items():
                    archive.write(path, name)
        elif kind == "parquet":
            table = pyarrow.table({"image": [path.read_bytes() for path in files.values()]})
            parquet.write_table(table, tmp_path / "in.parquet")
        else:
            with tarfile.open(tmp_path / f"in.{kind}", "w:gz" if kind == "tar.gz" else "w") as archive:
                for name, path in files.items():
                    archive.add(path, name)

    pack(["000.png", "001.png"])
    run(engine, tmp_path / f"in.{kind}", tmp_path / "rows.jsonl")
    assert run(engine, tmp_path / f"in.{kind}", tmp_path / "rows.jsonl").counts.num_known == 2
    pack(["000.png", "002.png"])
    summary = run(engine, tmp_path / f"in.{kind}", tmp_path / "rows.jsonl")
    assert (summary.counts.num_known, summary.counts.num_copies, summary.counts.num_judged) == (0, 1, 1)
    (_, row) = rows_of(tmp_path / "rows.jsonl").values()
    assert row["picture_sha256"] == hashlib.sha256((pictures / "002.png").read_bytes()).hexdigest()


def test_a_line_of_jsonl_is_looked_at_again_if_it_or_the_file_that_it_names_has_changed(engine, pictures, tmp_path):
    lines = [json.dumps({"image": f"in/{i:03d}.png"}) for i in range(2)]
    for i in (2, 3):
        data = base64.b64encode((pictures / f"{i:03d}.png").read_bytes()).decode()
        lines.append(json.dumps({"image": f"data:image/png;base64,{data}"}))
    (tmp_path / "in.jsonl").write_text("\n".join(lines[:3]))
    run(engine, tmp_path / "in.jsonl", tmp_path / "rows.jsonl")
    shutil.copy(pictures / "004.png", pictures / "001.png")
    (tmp_path / "in.jsonl").write_text("\n".join([*lines[:2], lines[3]]))
    summary = run(engine, tmp_path / "in.jsonl", tmp_path / "rows.jsonl")
    assert (summary.counts.num_known, summary.counts.num_judged) == (1, 2)
    found = [row["picture_sha256"] for row in rows_of(tmp_path / "rows.jsonl").values()]
    assert found == [hashlib.sha256((pictures / f"{i:03d}.png").read_bytes()).hexdigest() for i in (0, 1, 3)]


def test_no_picture_is_held_in_memory_longer_than_to_be_decoded(engine, pictures):
    paths = [pictures / name for name in ("000.png", "000.png", "001.png", "000.png")]
    items = [Item(Place(str(i), path.read_bytes), i) for i, path in enumerate(paths)]
    known, held = hashlib.sha256(paths[2].read_bytes()).digest(), []

    def found(item, judged):
        held.append((item.position, judged is not None, item.data))

    judge_items(engine, items, lambda sha256: sha256 == known, found, batch_size=2, num_workers=1)
    assert sorted(held) == [(0, True, None), (1, False, None), (2, False, None), (3, False, None)]


def test_a_sample_says_what_all_would_show_and_writes_nothing(engine, pictures, tmp_path):
    before = {*tmp_path.rglob("*")}
    summary, num_places, seconds = sample(engine, [str(pictures)], 5, batch_size=2, num_workers=2)
    assert (summary.num_rows, num_places) == (5, 12) and seconds > 0
    again, *_ = sample(engine, [str(pictures)], 5)
    assert again.labels == summary.labels, "the draw is the same each time"
    assert sample(engine, [str(pictures)], 50)[0].num_rows == 12
    assert {*tmp_path.rglob("*")} == before


def test_a_sample_is_drawn_from_all_places_alike_and_in_their_order(engine, pictures, monkeypatch):
    drawn = []

    def draw_only(engine, keeper, places, **settings):
        drawn.append([place.id for place in places])

    monkeypatch.setattr(local, "judge_places", draw_only)
    for seed in range(400):
        sample(engine, [str(pictures)], 3, seed=seed)
    assert all(len(set(ids)) == 3 and ids == sorted(ids) for ids in drawn)
    often = Counter(id for ids in drawn for id in ids)
    # Each of 12 is drawn 100 times of 400, give or take five standard deviations of 8.7.
    assert len(often) == 12 and all(56 < count < 144 for count in often.values())


def test_a_guard_that_may_not_judge_is_refused_before_anything_is_written(engine, pictures, tmp_path, monkeypatch):
    monkeypatch.setattr(type(engine.model), "refusal", lambda self: "the guard is untrained")
    with pytest.raises(RuntimeError, match="untrained"):
        run(engine, pictures, tmp_path / "rows.jsonl")
    assert not [*tmp_path.glob("rows*")]


def test_what_a_policy_in_shadow_would_do_counts_as_flagged(engine, pictures, tmp_path):
    policy = replace(policy_of(engine, unsafe_threshold=0.3), mode="shadow")
    summary = run(engine, pictures, tmp_path / "rows.jsonl", policy=policy)
    rows = list(read_rows(tmp_path / "rows.jsonl"))
    assert {row["decision"]["action"] for row in rows} == {"allow"}
    assert [is_flagged(row) for row in rows] == [row["unsafe"] >= 0.3 for row in rows]
    assert summary.num_flagged == sum(row["unsafe"] >= 0.3 for row in rows) > 0


def test_rows_that_are_none_are_refused_with_their_line(tmp_path, engine, pictures):
    run(engine, pictures, tmp_path / "rows.jsonl", policy=replace(policy_of(engine), mode="shadow"))
    row = json.loads((tmp_path / "rows.jsonl").read_text().splitlines()[0])
    assert row["decision"]["action"] == "allow"
    for change, reason in (({"label": None}, "neither a verdict nor an error"), ({"error": "x"}, "or both")):
        (tmp_path / "bad.jsonl").write_text(json.dumps(row) + "\n" + json.dumps({**row, **change}) + "\n")
        with pytest.raises(ValueError, match=f"line 2 .*{reason}"):
            list(read_rows(tmp_path / "bad.jsonl"))
    (tmp_path / "bad.jsonl").write_text('{"id": "a"}\n')
    with pytest.raises(ValueError, match="lacks label"):
        list(read_rows(tmp_path / "bad.jsonl"))
