"""What the tests of scanning share: drawings, the demo's engine, the command, processes, what a scan wrote."""

import os
import sys
import tempfile
import traceback
from contextlib import contextmanager
from dataclasses import dataclass

import pytest
import torch

import safeqwen.commands.scan
import safeqwen_cli
from safeqwen import load
from safeqwen.judging.engine import Engine
from safeqwen.scan.rows import read_rows
from tools.demo.pictograms import draw


# A forked process sets torch's thread pool up anew at its first use, which fails if two threads come to it at once.
os.register_at_fork(after_in_child=lambda: torch.set_num_threads(1))

NOBODY = 65534
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


@contextmanager
def as_nobody():
    """As a user to whom permissions apply, which they do not to root."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def command(engine, monkeypatch):
    """`safeqwen scan` with some arguments, in this process and with the model that is loaded already."""
    monkeypatch.setattr(safeqwen.commands.scan, "load_model", lambda args: (engine.model, engine.processor))
    return lambda *arguments: safeqwen_cli.main(["scan", *map(str, arguments)])


@dataclass(frozen=True)
class Ended:
    """How a process ended: its exit code (of a signal minus its number), and what it wrote to stdout and stderr."""

    code: int
    out: str
    err: str


def forked(call):
    """Calls a function (-> exit code) in a process of its own, and returns how that [`Ended`]."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        child = os.fork()
        if child == 0:
            become(call, out.fileno(), err.fileno())
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        out.seek(0), err.seek(0)
        return Ended(code, out.read(), err.read())


def become(call, out=1, err=2):
    """Ends this process, which was forked, with what the function returns; its output goes to two descriptors."""
    code = 99
    try:
        os.dup2(out, 1), os.dup2(err, 2)
        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)
        code = call()
        sys.stdout.flush()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)
