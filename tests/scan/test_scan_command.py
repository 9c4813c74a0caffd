"""`safeqwen scan` as one types it: exit codes, progress, Ctrl-C, pipes, full disks, and what is left behind."""

import contextlib
import fcntl
import json
import os
import pty
import re
import resource
import shutil
import signal
import sqlite3
import struct
import subprocess
import sys
import termios
import time
from types import SimpleNamespace

import pytest
from scanning import become, drawings, forked, rows_of, without_time
from tiny import ROOT

import safeqwen.commands.scan
from safeqwen.commands.scan import Progress, interval
from safeqwen.commands.terminal import progress_bar
from safeqwen.judging.engine import Engine
from safeqwen.scan.ledger import read_record
from safeqwen.scan.rows import read_rows
from safeqwen.scan.summary import Counts


BATCH = ("--batch-size", 2, "--num-workers", 2)  # so that 8 pictures are committed together


@pytest.fixture
def pictures(tmp_path):
    drawings(tmp_path / "in", 20)
    return tmp_path / "in"


@pytest.fixture
def undisturbed(command, pictures, tmp_path):
    """The rows of a scan that nothing befell."""
    assert command(pictures, "--out", tmp_path / "undisturbed.jsonl", "--quiet", *BATCH) == 0
    return without_time(read_rows(tmp_path / "undisturbed.jsonl"))


def ledger_of(out):
    return out.with_name(f"{out.name}.ledger")


# ---------------------------------------------------------------------------------------------------------- exit codes


def test_zero_if_all_have_a_verdict_and_stdout_sums_the_rows_up(command, pictures, tmp_path, capsys):
    shutil.copy(pictures / "001.png", pictures / "copy.png")
    (pictures / "words.md").write_text("no picture")
    assert command(pictures, "--out", tmp_path / "rows.jsonl") == 0
    out, err = capsys.readouterr()
    rows = rows_of(tmp_path / "rows.jsonl").values()
    assert out.startswith("21 pictures: 20 judged now, 1 known by their bytes, 0 as before; 0 errors\n")
    assert "no pictures, left out: 1" in out
    assert f"50 % or more: {sum(row['unsafe'] >= 0.5 for row in rows)}\n" in out
    for label in {row["label"] for row in rows}:
        assert re.search(rf"^  {label} +{sum(row['label'] == label for row in rows)}$", out, re.MULTILINE)
    assert err == "", "nothing is said in the first minute"


def test_one_if_some_are_errors_and_they_are_shown_whatever_they_are_called(command, pictures, tmp_path, capsys):
    (pictures / "a\x1b[31mred\nb.png").write_bytes(b"")
    assert command(pictures, "--out", tmp_path) == 1
    out = capsys.readouterr().out
    assert "; 1 error\n" in out and "\x1b" not in out and "red" in out
    assert len(rows_of(tmp_path / "rows.jsonl")) == 21


def test_of_many_errors_all_are_counted_and_the_first_shown(command, tmp_path, capsys):
    (tmp_path / "in").mkdir()
    for i in range(8):
        (tmp_path / "in" / f"{i}.png").symlink_to("nowhere.png")
    assert command(tmp_path / "in", "--out", tmp_path) == 1
    out = capsys.readouterr().out
    assert "; 8 errors\n" in out and "\nerrors: 8; the first:\n" in out
    assert re.findall(r"(\d)\.png: ", out) == [*"01234"]


def refusals():
    yield ["in"], "--out is missing"
    yield (
        ["in", "--out", "in/000.png"],
        "rows are in a file that ends in .jsonl or .parquet, or in a folder; got in/000.png",
    )
    yield ["in", "--out", "rows.csv"], "or in a folder; got rows.csv"
    yield ["in", "--out", "nofile.jsonl"], "nofile.jsonl is there without nofile.jsonl.ledger"
    yield ["in", "--out", "in/000.png/rows.jsonl"], "File exists: 'in/000.png'"
    yield ["nowhere", "--out", "new"], "there is no nowhere; check the path"
    yield ["empty", "--out", "new"], "there is no picture in empty"
    yield ["empty", "--sample", "3"], "there is no picture in empty"
    yield ["in", "--sample", "3", "--reuse", "other.jsonl"], "--sample judges anew and writes nothing"
    yield ["in", "--sample", "3", "--upload", "s3://bucket/rows.jsonl"], "--sample judges anew and writes nothing"
    yield ["in", "--out", "new", "--policy", "nowhere.json"], "nowhere.json"
    yield ["in", "--out", "new", "--policy", "others.json"], "others.json"
    yield ["in", "--out", "new", "--reuse", "nowhere"], "there is no ledger nowhere"
    yield ["in", "--out", "new", "--max-pixels", "783"], "max_pixels must be 784 or more"
    yield ["in", "--out", "new", "--model", "nowhere"], "the model nowhere could not be loaded"


@pytest.mark.parametrize("words, reason", refusals())
def test_two_for_a_refusal_which_is_one_line_and_writes_no_rows(
    command, pictures, tmp_path, capsys, monkeypatch, words, reason
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "nofile.jsonl").write_text("{}\n")
    (tmp_path / "others.json").write_text('{"version": 1, "categories": ["safe", "cats"]}')
    if "--model" in words:
        monkeypatch.undo()
        monkeypatch.chdir(tmp_path)
    assert command(*words) == 2
    out, err = capsys.readouterr()
    assert reason in err and err.count("\n") == 1 and out == ""
    assert not [*tmp_path.rglob("rows.jsonl")]


def test_another_policy_model_or_bound_is_refused_and_the_rows_stay(command, engine, pictures, tmp_path, capsys):
    out = tmp_path / "rows.jsonl"
    command(pictures, "--out", out)
    rows = out.read_bytes()
    policy = {"version": 1, "categories": engine.categories, "unsafe_threshold": 0.3}
    (tmp_path / "policy.json").write_text(json.dumps(policy))
    for words, reason in (
        (["--policy", tmp_path / "policy.json"], f"policy is .*--reuse {ledger_of(out)}"),
        (["--max-pixels", 3136], "max_pixels is 3136, there it was null.*another --out"),
    ):
        capsys.readouterr()
        assert command(pictures, "--out", out, *words) == 2
        assert re.search(reason, capsys.readouterr().err)
    assert out.read_bytes() == rows
    # The way that the refusal names is a way.
    decided = ["--policy", tmp_path / "policy.json", "--out", tmp_path / "decided", "--reuse", ledger_of(out)]
    assert command(pictures, *decided) == 0
    assert "0 judged now, 20 known by their bytes" in capsys.readouterr().out
    actions = [row["decision"]["action"] for row in read_rows(tmp_path / "decided")]
    assert actions.count("flag") == sum(row["unsafe"] >= 0.3 for row in read_rows(out)) > 0


def test_a_second_process_is_refused_while_one_is_at_work(command, pictures, tmp_path, monkeypatch):
    refused = []

    def meanwhile(engine, frames, judge=Engine._judge_batch):
        if not refused:
            refused.append(forked(lambda: command(pictures, "--out", tmp_path / "rows.jsonl")))
        return judge(engine, frames)

    monkeypatch.setattr(Engine, "_judge_batch", meanwhile)
    assert command(pictures, "--out", tmp_path / "rows.jsonl") == 0
    assert refused[0].code == 2 and "another process writes to" in refused[0].err
    assert "wait for it, or stop it" in refused[0].err
    assert len(rows_of(tmp_path / "rows.jsonl")) == 20


@pytest.mark.parametrize("words", [["--token", "hf_secret"], ["--token=hf_secret"]])
def test_a_token_is_in_no_file_that_a_scan_leaves(command, pictures, tmp_path, words):
    out = tmp_path / "out" / "rows.jsonl"
    assert command(pictures, "--out", out, *words) == 0
    assert read_record(out)["made"]["command"].startswith(f"safeqwen scan {pictures} --out {out} --token")
    assert not [path for path in out.parent.iterdir() if b"hf_secret" in path.read_bytes()]


# ------------------------------------------------------------------------------------------------------------ progress


def test_a_line_a_minute_says_rate_errors_and_time_left(monkeypatch, capsys):
    now = 1000.0
    monkeypatch.setattr(safeqwen.commands.scan, "time", SimpleNamespace(monotonic=lambda: now))
    with Progress(range(1000), is_quiet=False) as progress:
        while progress.num_places is None:
            time.sleep(0.001)  # a thread counts them
        for now in range(1000, 1130, 5):
            seconds = int(now) - 1000
            progress(Counts(num_known=100, num_judged=4 * seconds, num_errors=seconds // 10))
    # 60 s: 240 judged and 6 errors, 246 / 60 = 4.1 a second; (1000 - 346) / 4.1 = 159 s. 120 s: 492 / 120 = 4.1; 99 s.
    assert capsys.readouterr().err.splitlines() == [
        "safeqwen: 346 of 1,000 pictures, 4.1 a second, 6 errors, 02:39 left",
        "safeqwen: 592 of 1,000 pictures, 4.1 a second, 12 errors, 01:39 left",
    ]


def test_no_line_counts_pictures_that_were_known_as_speed_nor_says_what_is_not_counted_yet(monkeypatch, capsys):
    now = 0.0
    monkeypatch.setattr(safeqwen.commands.scan, "time", SimpleNamespace(monotonic=lambda: now))
    progress = Progress([], is_quiet=False)
    progress.started = progress.said = 0.0
    now = 60.0
    progress(Counts(num_known=5000))
    progress.num_places, now = 10_000, 120.0
    progress(Counts(num_known=6000))
    assert capsys.readouterr().err.splitlines() == [
        "safeqwen: 5,000 pictures, 0 a second, 0 errors",
        "safeqwen: 6,000 of 10,000 pictures, 0 a second, 0 errors",
    ]


def test_progress_is_said_on_stderr_while_pictures_are_judged_and_not_if_quiet(
    command, pictures, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(safeqwen.commands.scan, "SECONDS_BETWEEN_LINES", 0)
    assert command(pictures, "--out", tmp_path / "a.jsonl", *BATCH) == 0
    said = capsys.readouterr().err.splitlines()
    met = [int(re.match(r"safeqwen: (\d+)( of 20)? pictures, [\d.e+]+ a second, 0 errors", line)[1]) for line in said]
    assert met == [*range(1, 21)]
    assert command(pictures, "--out", tmp_path / "b.jsonl", "--quiet", *BATCH) == 0
    assert capsys.readouterr().err == ""


def on_terminal(call, columns=100):
    """Runs a function in a forked process on a terminal so wide; the process and the terminal's other end."""
    child, terminal = pty.fork()
    if child == 0:
        fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", columns and 24, columns, 0, 0))
        signal.signal(signal.SIGINT, signal.default_int_handler)  # tests may run where it is ignored
        become(call)
    return child, terminal


def read_to_end(terminal, until=None):
    """What a terminal shows (`str`) up to some words, or until nobody writes to it any more."""
    shown = b""
    while until is None or until not in shown:
        try:
            shown += os.read(terminal, 4096)
        except OSError:  # Linux's way to say that the other end is closed
            break
    return shown.decode()


@pytest.mark.parametrize("quiet", [[], ["--quiet"]])
def test_a_bar_on_a_terminal_with_count_rate_errors_and_time_left(command, pictures, tmp_path, quiet):
    (pictures / "bad.png").write_bytes(b"")
    child, terminal = on_terminal(lambda: command(pictures, "--out", tmp_path / "rows.jsonl", *BATCH, *quiet))
    shown = read_to_end(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
    assert "21 pictures: 20 judged now" in shown
    bars = re.findall(r"\r[^\r]*21/21 \[\d\d:\d\d<\d\d:\d\d, [^\r]* pictures/s, 1 error\]", shown)
    assert bool(bars) == (not quiet) == ("error]" in shown)


@pytest.mark.parametrize(("columns", "width"), [(60, 59), (0, 79)])
def test_a_bar_is_as_wide_as_the_terminal_or_80_columns_where_that_reports_none(columns, width):
    """As in some containers; tqdm leaves the last column free, and shows no bar on a terminal without columns."""
    child, terminal = on_terminal(
        lambda: sum(1 for _ in progress_bar(range(3), "thumbnails", mininterval=0)) - 3, columns
    )
    bars = [bar for bar in re.split(r"[\r\n]+", read_to_end(terminal)) if bar]
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert bars and {len(bar) for bar in bars} == {width} and bars[-1].startswith("thumbnails: 100%|")


# ------------------------------------------------------------------------------------------------------- interruptions


def at_batch(number, act):
    """A patched `Engine._judge_batch` that acts before it judges a batch, counted from 1."""
    judged = []

    def judge_batch(engine, frames, judge=Engine._judge_batch):
        judged.append(frames)
        if len(judged) == number:
            act()
        return judge(engine, frames)

    return judge_batch


@pytest.mark.parametrize("batch, kept", [(1, 0), (7, 8), (10, 16)])
def test_ctrl_c_keeps_what_is_finished_and_the_same_command_goes_on(
    command, pictures, tmp_path, monkeypatch, capsys, undisturbed, batch, kept
):
    out = tmp_path / "rows.jsonl"
    with monkeypatch.context() as patched:
        patched.setattr(Engine, "_judge_batch", at_batch(batch, lambda: print("HERE", flush=True) or time.sleep(60)))
        child, terminal = on_terminal(lambda: command(pictures, "--out", out, *BATCH))
        read_to_end(terminal, until=b"HERE")
        os.write(terminal, b"\x03")
        shown = read_to_end(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 130
    assert "safeqwen: stopped; start the same command again to go on" in shown and "Traceback" not in shown
    assert not out.exists()
    capsys.readouterr()
    assert command(pictures, "--out", out, "--quiet", *BATCH) == 0
    assert f"20 pictures: {20 - kept} judged now, 0 known by their bytes, {kept} as before" in capsys.readouterr().out
    assert without_time(read_rows(out)) == undisturbed


def test_sigterm_and_sigkill_keep_what_is_finished_too(command, pictures, tmp_path, monkeypatch, capsys, undisturbed):
    out = tmp_path / "rows.jsonl"
    for number, kept in ((signal.SIGTERM, 8), (signal.SIGKILL, 16)):
        with monkeypatch.context() as patched:
            patched.setattr(Engine, "_judge_batch", at_batch(6, lambda: os.kill(os.getpid(), number)))  # noqa: B023
            assert forked(lambda: command(pictures, "--out", out, "--quiet", *BATCH)).code == -number
        assert not out.exists()
        assert num_places(ledger_of(out)) == kept
    assert command(pictures, "--out", out, "--quiet", *BATCH) == 0
    assert "4 judged now, 0 known by their bytes, 16 as before" in capsys.readouterr().out
    assert without_time(read_rows(out)) == undisturbed


def num_places(ledger):
    with contextlib.closing(sqlite3.connect(ledger)) as sql:
        return sql.execute("SELECT count(*) FROM places").fetchone()[0]


def test_a_reader_of_stdout_that_goes_away_loses_no_row(pictures, tmp_path):
    """As `safeqwen scan ... | head -c 0`; a process of its own, since Python flushes once more on its way out."""
    reader, writer = os.pipe()
    os.close(reader)
    program = "import sys, safeqwen_cli; sys.exit(safeqwen_cli.main())"
    words = ["scan", str(pictures), "--out", str(tmp_path / "rows.jsonl")]
    done = subprocess.run(
        [sys.executable, "-c", program, *words],
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    os.close(writer)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr and "BrokenPipe" not in done.stderr
    assert len(rows_of(tmp_path / "rows.jsonl")) == 20


# ---------------------------------------------------------------------------------------------------------- full disks


def limited(num_bytes, call):
    """The call in a process whose files cannot grow beyond that many bytes: writing more fails as on a full disk."""

    def run():
        resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, num_bytes))
        return call()

    return forked(run)


@pytest.mark.parametrize("num_bytes", [2000, 20_000, 40_000, 60_000])
@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_a_full_disk_says_what_to_do_and_with_room_the_scan_goes_on(
    command, pictures, tmp_path, undisturbed, num_bytes, suffix
):
    out = tmp_path / f"rows{suffix}"
    full = limited(num_bytes, lambda: command(pictures, "--out", out, "--quiet", *BATCH))
    assert full.code == 2 and full.err.count("\n") == 1
    assert f"{ledger_of(out)} could not be written" in full.err
    assert "make room" in full.err and "start the same command again" in full.err
    assert not out.exists()
    assert command(pictures, "--out", out, "--quiet", *BATCH) == 0
    assert without_time(read_rows(out)) == undisturbed


def test_a_disk_that_is_full_when_the_rows_are_written_keeps_the_verdicts_and_the_old_rows(
    command, pictures, tmp_path, capsys
):
    out = tmp_path / "rows.jsonl"
    for i in range(40):  # so that the rows are larger than the ledger
        shutil.copy(pictures / "000.png", pictures / f"copy{i}.png")
    command(pictures, "--out", out, *BATCH)
    old = out.read_bytes()
    (pictures / "bad.png").write_bytes(b"")
    full = limited(len(old) - 1000, lambda: command(pictures, "--out", out, *BATCH))
    assert full.code == 2 and f"{out} could not be written (File too large): make room" in full.err
    assert out.read_bytes() == old and not [*tmp_path.glob(".rows*")]
    capsys.readouterr()
    assert command(pictures, "--out", out, *BATCH) == 1
    assert "61 pictures: 0 judged now" in capsys.readouterr().out
    rows = rows_of(out)
    assert rows.pop(str(pictures / "bad.png"))["error"] is not None
    assert "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows.values()).encode() == old


# --------------------------------------------------------------------------------------------------------- left behind


def test_a_scan_leaves_rows_ledger_and_lock_and_reading_them_leaves_nothing_more(command, pictures, tmp_path):
    out, second = tmp_path / "a" / "rows.jsonl", tmp_path / "b" / "rows.jsonl"
    command(pictures, "--out", out)
    left = sorted(path.name for path in out.parent.iterdir())
    assert left == ["rows.jsonl", "rows.jsonl.ledger", "rows.jsonl.ledger.lock"]
    command(pictures, "--out", second, "--reuse", out)
    assert sorted(path.name for path in out.parent.iterdir()) == left
    assert sorted(path.name for path in second.parent.iterdir()) == left


# -------------------------------------------------------------------------------------------------------------- sample


def test_a_sample_says_what_all_would_cost_within_an_interval(command, pictures, tmp_path, capsys):
    (pictures / "bad.png").write_bytes(b"")
    assert command(pictures, "--sample", 50, "--quiet") == 1
    out = capsys.readouterr().out
    assert "21 pictures; drawn and looked at: 21; nothing was written" in out
    assert "these are all: there is nothing to estimate" in out and "interval" not in out
    assert command(pictures, "--sample", 20, "--quiet") == 1
    out = capsys.readouterr().out
    assert re.search(
        r"errors +5.0%  \(0.9% to 23.6%\), 1 picture$", out, re.MULTILINE
    )  # of 1 in 20, by R: prop.test(correct=F)
    assert re.search(r"all would take about \d\d:\d\d", out)
    assert command(pictures, "--sample", 3, "--quiet") in (0, 1)
    assert "21 pictures; drawn and looked at: 3; " in capsys.readouterr().out
    assert {path.name for path in tmp_path.iterdir()} == {"in"}


def test_the_interval_is_wilsons():
    # Newcombe, Statistics in Medicine 17 (1998), table I, method 3: 81 of 263 and 15 of 148.
    assert interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert interval(15, 148) == pytest.approx((0.0624, 0.1605), abs=1e-4)
    assert interval(0, 20)[0] == 0 and interval(29, 29)[1] == 1
