"""A scan by actors of Ray Data has the rows of one on this machine, whoever dies meanwhile."""

import http.server
import os
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import zipfile
from contextlib import closing, contextmanager
from pathlib import Path

import psutil
import pyarrow
import pytest
import ray
from pyarrow import parquet
from scan import scanning
from scan.scanning import drawings, rows_of, without_time

import safeqwen_cli
from safeqwen import DEMO_CHECKPOINT, SafetyPolicy
from safeqwen.fingerprint import weights_fingerprint
from safeqwen.judging.engine import window_of
from safeqwen.scan import local
from safeqwen.scan import ray as on_ray
from safeqwen.scan.cluster import connected
from safeqwen.scan.rows import read_rows
from safeqwen.scan.sources import Access


FINGERPRINT = weights_fingerprint(DEMO_CHECKPOINT)
SETTINGS = {"batch_size": 2, "num_workers": 2, "model_fingerprint": FINGERPRINT}
HERE = Access(private_networks=True)
engine = scanning.engine  # the fixture


@pytest.fixture(scope="module", autouse=True)
def cluster():
    """Ray on this machine, with room for two actors. Its address is `host:port`."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    context = ray.init(num_cpus=2, object_store_memory=150 * 2**20, include_dashboard=False, log_to_driver=False)
    yield context.address_info["gcs_address"]
    ray.shutdown()


@pytest.fixture
def pictures(tmp_path):
    drawings(tmp_path / "in", 24)
    return tmp_path / "in"


def run(engine, sources, out, **kwargs):
    settings = {"categories": engine.categories, "num_actors": 2, **SETTINGS, **kwargs}
    return on_ray.scan(None, [*map(str, sources)], out, **settings)


def run_here(engine, sources, out, **kwargs):
    return local.scan(engine, [*map(str, sources)], out, **SETTINGS, **kwargs)


@contextmanager
def server(picture, when_asked, each_time=False):
    """A URL of the picture. `when_asked(port)`, of who asks, is called before the first answer, or before each."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *args):
            pass

        def do_GET(self):
            if each_time or not asked.is_set():
                asked.set()
                when_asked(self.client_address[1])
            self.send_response(200)
            self.end_headers()
            self.wfile.write(picture.read_bytes())

    asked = threading.Event()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as serving:
        serving.daemon_threads = True
        threading.Thread(target=serving.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        yield f"http://127.0.0.1:{serving.server_address[1]}/a.png"
        serving.shutdown()


def actor_behind(port):
    """The process (`psutil.Process`) that this port of the machine belongs to."""
    (owner,) = {found.pid for found in psutil.net_connections("tcp") if found.laddr.port == port and found.pid}
    return psutil.Process(owner)


# ----------------------------------------------------------------------------------------------------------- the rows


def test_two_actors_give_the_rows_of_a_scan_on_one_machine_to_the_bit(engine, pictures, tmp_path):
    policy = SafetyPolicy(categories=engine.categories, unsafe_threshold=0.3)
    run_here(engine, [pictures], tmp_path / "here.jsonl", policy=policy)
    met = []
    summary = run(
        engine, [pictures], tmp_path / "ray.jsonl", policy=policy, progress=lambda counts: met.append(counts.num_met)
    )
    assert without_time(read_rows(tmp_path / "ray.jsonl")) == without_time(read_rows(tmp_path / "here.jsonl"))
    assert (summary.counts.num_judged, summary.num_rows, summary.num_errors) == (24, 24, 0)
    assert met == [*range(1, 25)]


def test_whatever_the_source_is_a_row_is_that_of_one_machine_and_copies_share_a_verdict(
    engine, pictures, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)  # relative paths count from here, in the actors too
    files = sorted(pictures.iterdir())
    shutil.make_archive("shard", "tar", pictures)
    shutil.make_archive("packed", "gztar", pictures)
    with zipfile.ZipFile("some.zip", "w") as archive:
        for path in files[:5]:
            archive.write(path, path.name)
    table = pyarrow.Table.from_pylist([{"image": path.read_bytes()} for path in files[:12]])
    parquet.write_table(table, "some.parquet")
    (pictures / "bad.png").write_bytes(b"no picture")
    (pictures / "gone.png").symlink_to("nowhere.png")
    other = drawings(tmp_path / "stored", 1, seed=9)[0].rename(tmp_path / "stored" / "50% & more.png")
    sources = ["in", "shard.tar", "packed.tar.gz", "some.zip", "some.parquet", f"fsspec+file://{other.parent}"]
    run_here(engine, sources, "here.jsonl")
    summary = run(engine, sources, "ray.jsonl")
    here, there = rows_of("here.jsonl"), rows_of("ray.jsonl")
    assert [*here] == [*there] and len(here) == 24 + 2 + 24 + 24 + 5 + 12 + 1
    assert summary.num_errors == 2 and summary.counts.num_judged == 25
    copies = {}
    for id, row in here.items():
        found = there[id]
        assert {**found, **dict.fromkeys(("scores", "score", "unsafe", "seconds", "judged_at"))} == {
            **row,
            **dict.fromkeys(("scores", "score", "unsafe", "seconds", "judged_at")),
        }
        if row["error"] is None:
            assert [*found["scores"].values()] == pytest.approx([*row["scores"].values()], abs=1e-5)
            assert found["scores"] == copies.setdefault(found["picture_sha256"], found["scores"])

    reused = run(engine, ["shard.tar", "in/bad.png"], "other.jsonl", reuse="here.jsonl.ledger")
    assert (reused.counts.num_judged, reused.counts.num_copies, reused.num_errors) == (0, 24, 1)
    assert reused.counts.seconds == 0 < summary.counts.seconds


def test_the_command_scans_on_a_cluster_and_prints_what_it_found(pictures, tmp_path, capsys):
    (pictures / "bad.png").write_bytes(b"")
    command = ["scan", str(pictures), "--out", str(tmp_path / "rows.jsonl"), "--engine", "ray", "--num-actors", "1"]
    assert safeqwen_cli.main([*command, "--batch-size", "4"]) == 1
    printed = capsys.readouterr()
    assert "25 pictures: 24 judged now" in printed.out and "bad.png: is empty" in printed.out
    assert len(rows_of(tmp_path / "rows.jsonl")) == 25
    assert "Traceback" not in printed.err


# ------------------------------------------------------------------------------------------------------------- deaths


def test_an_actor_that_is_killed_within_a_window_loses_nothing_and_doubles_nothing(engine, pictures, tmp_path):
    killed = []

    def kill(port):
        actor = actor_behind(port)
        killed.append(" ".join(actor.cmdline()))
        actor.kill()

    with server(pictures / "003.png", kill) as url:
        lines = [str(path) for path in sorted(pictures.iterdir())]
        (tmp_path / "list.txt").write_text("\n".join([*lines[:11], url, *lines[11:]]))
        run(engine, [tmp_path / "list.txt"], tmp_path / "ray.jsonl", access=HERE)
        assert len(killed) == 1 and killed[0].startswith("ray::MapWorker")
        run_here(engine, [tmp_path / "list.txt"], tmp_path / "here.jsonl", access=HERE)
    here, there = rows_of(tmp_path / "here.jsonl"), rows_of(tmp_path / "ray.jsonl")
    assert [*there] == [*here] and len(there) == 25
    for id, row in there.items():
        assert row["error"] is None
        assert [*row["scores"].values()] == pytest.approx([*here[id]["scores"].values()], abs=1e-5)


def test_a_picture_that_kills_each_actor_is_an_error_of_its_own_and_is_judged_when_it_is_mended(
    engine, pictures, tmp_path, monkeypatch
):
    is_mended = threading.Event()
    monkeypatch.setattr(on_ray, "MAX_TRIES", 1)  # each death is a model to load
    with server(pictures / "003.png", lambda port: is_mended.is_set() or actor_behind(port).kill(), True) as url:
        lines = [str(path) for path in sorted(pictures.iterdir())]
        (tmp_path / "list.txt").write_text("\n".join([*lines[:11], url, *lines[11:]]))
        with monkeypatch.context() as patch:
            patch.setattr(on_ray, "MAX_PUT_OFF", 0)
            with pytest.raises(
                RuntimeError,
                match="at each of 1 windows, the first of which begins with .*: .*; start the same command",
            ) as refusal:
                run(engine, [tmp_path / "list.txt"], tmp_path / "ray.jsonl", access=HERE)
        assert "\n" not in str(refusal.value) and not (tmp_path / "ray.jsonl").exists()
        finished = num_places(tmp_path / "ray.jsonl.ledger")
        summary = run(engine, [tmp_path / "list.txt"], tmp_path / "ray.jsonl", access=HERE)
        assert summary.counts.num_known == finished and summary.counts.num_judged == 24 - finished
        (error,) = (row for row in rows_of(tmp_path / "ray.jsonl").values() if row["error"] is not None)
        assert error["id"] == url and "each process that read it died; save it anew, or remove it" in error["error"]
        is_mended.set()
        summary = run(engine, [tmp_path / "list.txt"], tmp_path / "ray.jsonl", access=HERE)
        assert (summary.num_errors, summary.counts.num_known, summary.num_rows) == (0, 24, 25)
        run_here(engine, [tmp_path / "list.txt"], tmp_path / "here.jsonl", access=HERE)
    here, there = rows_of(tmp_path / "here.jsonl"), rows_of(tmp_path / "ray.jsonl")
    assert [*there] == [*here]
    for id, row in there.items():
        assert [*row["scores"].values()] == pytest.approx([*here[id]["scores"].values()], abs=1e-5)


def test_a_driver_that_is_killed_goes_on_with_what_is_finished(engine, cluster, pictures, tmp_path):
    drawings(pictures / "more", 24, seed=6_000_000)
    is_killed = threading.Event()
    with server(pictures / "003.png", lambda port: is_killed.wait(60)) as url:
        (tmp_path / "list.txt").write_text("\n".join([*map(str, sorted(pictures.rglob("*.png"))), url]))
        command = [sys.executable, "-m", "safeqwen", "scan", str(tmp_path / "list.txt"), "--engine", "ray"]
        command += ["--address", cluster, "--num-actors", "2", "--batch-size", "2", "--private-networks"]
        command += ["--timeout", "60", "--quiet", "--out", str(tmp_path / "rows.jsonl")]
        driver = subprocess.Popen(command, stderr=subprocess.PIPE)
        ledger, deadline = tmp_path / "rows.jsonl.ledger", time.monotonic() + 240
        while not num_places(ledger) and driver.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        driver.kill()
        assert driver.wait() == -signal.SIGKILL, driver.stderr.read().decode()
        is_killed.set()
        driver.stderr.close()
        finished = num_places(ledger)
        assert 0 < finished < 49 and not (tmp_path / "rows.jsonl").exists()
        summary = run(engine, [tmp_path / "list.txt"], tmp_path / "rows.jsonl", access=HERE)
        run_here(engine, [tmp_path / "list.txt"], tmp_path / "here.jsonl", access=HERE)
    assert summary.counts.num_known == finished and summary.num_rows == 49
    here, there = rows_of(tmp_path / "here.jsonl"), rows_of(tmp_path / "rows.jsonl")
    assert [*there] == [*here]
    for id, row in there.items():
        assert [*row["scores"].values()] == pytest.approx([*here[id]["scores"].values()], abs=1e-5)


def num_places(ledger):
    if not ledger.exists():
        return 0
    with closing(sqlite3.connect(f"{ledger.as_uri()}?mode=ro", uri=True)) as sql:
        try:
            return sql.execute("SELECT count(*) FROM places").fetchone()[0]
        except sqlite3.OperationalError:  # there are no tables yet
            return 0


# ----------------------------------------------------------------------------------------------------------- refusals


def test_a_model_that_an_actor_cannot_load_or_that_is_another_is_one_refusal_in_words(engine, pictures, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(DEMO_CHECKPOINT, folder)
    with pytest.raises(RuntimeError, match="has another model_fingerprint than this machine") as refusal:
        on_ray.scan(
            folder,
            [str(pictures)],
            tmp_path / "a.jsonl",
            categories=engine.categories,
            num_actors=1,
            model_fingerprint="f" * 64,
        )
    (folder / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(RuntimeError, match=f"the model {folder} could not be loaded on {socket.gethostname()}: "):
        on_ray.scan(
            folder,
            [str(pictures)],
            tmp_path / "b.jsonl",
            categories=engine.categories,
            num_actors=1,
            model_fingerprint=FINGERPRINT,
        )
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "a.jsonl").exists() and not (tmp_path / "b.jsonl").exists()


def test_what_the_cluster_does_not_have_is_not_waited_for(engine, pictures, tmp_path):
    with pytest.raises(ValueError, match="--device cuda: the Ray cluster has no GPU"):
        run(engine, [pictures], tmp_path / "rows.jsonl", device="cuda")
    with pytest.raises(ValueError, match="--num-actors 3: each takes a CPU, and the Ray cluster has 2; give at most"):
        run(engine, [pictures], tmp_path / "rows.jsonl", num_actors=3)
    assert {path.name for path in tmp_path.iterdir()} == {"in"}


def test_pictures_that_ray_loses_end_the_scan_without_rows_and_the_next_one_judges_them(
    engine, pictures, tmp_path, monkeypatch
):
    keep, lost = on_ray._keep, []
    with monkeypatch.context() as patch:
        patch.setattr(on_ray, "_keep", lambda keeper, found: keep(keeper, found) if lost else lost.extend(found))
        with pytest.raises(RuntimeError, match=f"Ray lost {window_of(2)} pictures; start the same command again"):
            run(engine, [pictures], tmp_path / "rows.jsonl")
    assert not (tmp_path / "rows.jsonl").exists()
    assert run(engine, [pictures], tmp_path / "rows.jsonl").counts.num_judged == len(lost)
    assert len(rows_of(tmp_path / "rows.jsonl")) == 24


@pytest.mark.parametrize(
    "address, reason",
    [("127.0.0.1:1", "nobody answers at 127.0.0.1:1"), ("ray://head:10001", "takes HOST:PORT"), ("head", "HOST:PORT")],
)
def test_an_address_where_no_cluster_is_is_refused_at_once(address, reason, monkeypatch):
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", None)  # which would try for minutes
    with pytest.raises(ValueError, match=reason):
        with connected(address):
            pass


def test_the_pages_pipeline_of_ones_own_runs_and_its_rows_are_a_scans(pictures, tmp_path):
    page = (Path(__file__).parents[2] / "docs" / "scanning.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    # Ray's readers and writers work where the workers are, which is not the test's folder.
    code = code.replace('"pictures"', repr(str(pictures))).replace('"rows"', repr(str(tmp_path / "rows")))
    exec(compile(code, "docs/scanning.md", "exec"), {})
    rows = [row for file in (tmp_path / "rows").glob("*.parquet") for row in read_rows(file)]
    assert len(rows) == 24 and not any(row["error"] for row in rows)
