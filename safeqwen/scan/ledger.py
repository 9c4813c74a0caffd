"""
The ledger of a scan: one SQLite file beside the rows, and the one source of truth about them.

    about      what is scanned, with what: compared when a scan is started again
    verdicts   what the model said of a picture's bytes: one a sha256
    places     where a picture is, and what it showed there: a sha256 that is in `verdicts`, or an error

Why nothing is lost and nothing is there twice, whenever the process or the machine dies:

- A place is the primary key of its row, so that it cannot be there twice. What was looked at is written in
  transactions, verdicts and places together (a foreign key holds a place to a verdict that is there). A kill between
  two of them loses what no place speaks of yet, and that is looked at again.
- ROWS is made of the ledger when all sources are through, beside its place, and then put there in one step. What is
  there is whole. Until then there is no ROWS, or the whole one of the last scan.
- A scan is a *pass* over its sources. Each place carries the number of the last pass that met it. Started again, a
  pass that was cut off goes on: what it has met is not looked at again, unless the file has changed (size and time of
  change). After a pass that ended a new one begins: places that are as they were keep their verdicts, changed ones
  and errors are looked at again, and what no source holds any more is not in ROWS.
- The verdicts are of one model, dtype and bound of pixels: those are in `about`, and another scan is refused.

SQLite writes ahead to a log (WAL). A killed process loses no transaction that ended; a power cut may lose the last
ones, and what they held is judged again. The file must lie on a local disk, as SQLite's log wants it. A process that
ends puts the log away: then the ledger is one file, which can be copied, and read where nothing may be written.
"""

import contextlib
import json
import sqlite3
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout


FORMAT = 1  # of the tables
TABLES = """
CREATE TABLE about (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE verdicts (
    sha256 BLOB PRIMARY KEY, probs BLOB NOT NULL, frames TEXT NOT NULL, width INTEGER NOT NULL,
    height INTEGER NOT NULL, perceptual_hash BLOB, seconds REAL NOT NULL, judged_at TEXT NOT NULL
);
CREATE TABLE places (
    id TEXT PRIMARY KEY, pass INTEGER NOT NULL, position INTEGER NOT NULL, stamp TEXT, num_bytes INTEGER,
    sha256 BLOB, verdict BLOB REFERENCES verdicts (sha256), error TEXT,
    CHECK ((verdict IS NULL) != (error IS NULL))
);
CREATE INDEX in_order ON places (pass, position);
"""
JUDGED_WITH = ("model_fingerprint", "categories", "dtype", "max_pixels")  # what a verdict depends on


@dataclass(frozen=True)
class Judged:
    """
    What the model said of one picture.

    Args:
        probs (`np.ndarray` of shape `(views, categories)`, float32)
        frames (`list[int]`): the number of the frame that each view shows.
        width, height (`int`): of the first view.
        perceptual_hash (`bytes`, *optional*): 32 of them.
        seconds (`float`): the model's time.
        judged_at (`str`): when.
    """

    probs: np.ndarray
    frames: list
    width: int
    height: int
    perceptual_hash: bytes | None
    seconds: float
    judged_at: str


class Ledger:
    """
    The ledger of the rows at a path, open for one process. A context manager, which ends the open transaction if no
    error is on its way.

    Args:
        path (`Path`, *optional*): of the ledger; `None` for one that is not kept.
        about (`dict`): of JSON's types: what is scanned, with what. Of a ledger that is there it must be the same.
        made (`dict`, *optional*): what may differ from one start to the next, such as versions, for the record.

    Raises:
        ValueError: if the ledger is of another scan (what differs), is no ledger, or another process writes to it.
        OSError: if it cannot be written.
    """

    def __init__(self, path, about, made=None):
        self.path, self.about, self.made = path, json.loads(json.dumps(about)), made or {}
        self.num_new = 0  # of the open transaction
        self._sql = None
        self._lock = None if path is None else FileLock(f"{path}.lock")

    def __enter__(self):
        try:
            with writing_to(self.path):
                if self._lock is not None:
                    self._lock.acquire(timeout=0)
                self._open()
        except Timeout:
            raise ValueError(f"another process writes to {self.path}: wait for it, or stop it") from None
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(self, kind, error, traceback):
        try:
            if kind is None:
                self.commit()
        finally:
            self._close()

    def _close(self):
        if self._sql is not None:
            with contextlib.suppress(sqlite3.Error):  # a full disk, or a reader: then the log stays, and goes on
                self._sql.rollback()
                self._sql.execute("PRAGMA main.journal_mode = DELETE")  # one file, that can be read where none is made
            self._sql.close()
        if self._lock is not None:
            self._lock.release()

    def _open(self):
        name = ":memory:" if self.path is None else self.path.absolute().as_uri()
        self._sql = sqlite3.connect(name, isolation_level=None, uri=True)
        try:
            self._sql.execute("PRAGMA journal_mode = WAL")
            self._sql.execute("PRAGMA synchronous = NORMAL")
            self._sql.execute("PRAGMA foreign_keys = ON")
            names = {name for (name,) in self._sql.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        except sqlite3.DatabaseError as error:
            if "not a database" in str(error):
                raise ValueError(f"{self.path} is no ledger of a scan; move it away, or give another --out") from None
            raise
        if not names:
            self._sql.execute("BEGIN")
            for statement in TABLES.split(";"):
                self._sql.execute(statement)
            self._set("about", {"format": FORMAT, **self.about})
            self._set("pass", 1)
            self._sql.execute("COMMIT")
        elif "about" not in names:
            raise ValueError(f"{self.path} is another program's; move it away, or give another --out")
        self._check_about()
        self._set("made", self.made)
        self.number = self._get("pass")
        self._sql.execute("BEGIN")

    def _check_about(self):
        then, now = self._get("about"), {"format": FORMAT, **self.about}
        if differing := [name for name in now if then.get(name) != now[name]]:
            raise ValueError(
                f"{self.path} is of another scan: {_differences(then, now, differing)}. Give the same settings, or "
                "another --out"
                + (
                    ""
                    if {*differing} & {*JUDGED_WITH, "format"}
                    else f" with --reuse {self.path}, which takes over the verdicts"
                )
            )

    def _get(self, name):
        return json.loads(self._sql.execute("SELECT value FROM about WHERE name = ?", (name,)).fetchone()[0])

    def _set(self, name, value):
        self._sql.execute("INSERT OR REPLACE INTO about VALUES (?, ?)", (name, json.dumps(value)))

    # --------------------------------------------------------------------------------------------------------- looking

    def has_met(self, id, stamp, position):
        """
        Returns whether there is nothing to look at (`bool`): the place was met in this pass, or was judged in an
        earlier one, and is as it was.

        Args:
            id (`str`)
            stamp (`str`, *optional*): what changes when the picture may have changed; `None` if nobody can tell, and
                then the place is taken for unchanged.
            position (`int`): of the place in the sources.
        """
        found = self._sql.execute("SELECT pass, stamp, error FROM places WHERE id = ?", (id,)).fetchone()
        if found is None or found[1] != stamp:
            return False
        if found[0] == self.number:
            return True
        if found[2] is not None:
            return False
        self._write("UPDATE places SET pass = ?, position = ? WHERE id = ?", (self.number, position, id))
        return True

    def knows(self, sha256):
        """Returns whether there is a verdict on the picture with this sha256 (`bytes`), here or in a reused ledger."""
        if self._sql.execute("SELECT 1 FROM verdicts WHERE sha256 = ?", (sha256,)).fetchone():
            return True
        if "reused" not in self._attached():
            return False
        return self._write("INSERT INTO verdicts SELECT * FROM reused.verdicts WHERE sha256 = ?", (sha256,)) > 0

    def known(self):
        """Returns the sha256 of all pictures that `knows` says yes to (`frozenset[bytes]`)."""
        names = [name for name in self._attached() if name in ("main", "reused")]
        found = (self._sql.execute(f"SELECT sha256 FROM {name}.verdicts") for name in names)
        return frozenset(sha256 for rows in found for (sha256,) in rows)

    def reuse(self, path):
        """
        Takes over, when asked for them, the verdicts of another scan's ledger.

        Raises:
            ValueError: if there is none, or it is of another model or of other settings that a verdict depends on.
        """
        path = Path(path)
        if not path.is_file():
            raise ValueError(f"--reuse: there is no ledger {path}; it lies beside the rows of a scan")
        self.commit(reopen=False)  # no file is attached within a transaction
        try:
            self._sql.execute("ATTACH DATABASE ? AS reused", (f"{path.absolute().as_uri()}?mode=rw",))
            then = json.loads(self._sql.execute("SELECT value FROM reused.about WHERE name = 'about'").fetchone()[0])
        except (sqlite3.DatabaseError, TypeError) as error:
            raise ValueError(f"--reuse: {path} is no ledger of a scan ({error})") from None
        finally:
            self._sql.execute("BEGIN")
        differing = [name for name in JUDGED_WITH if then.get(name) != self.about[name]]
        if then.get("format") != FORMAT or differing:
            raise ValueError(
                f"--reuse: the verdicts of {path} are others': {_differences(then, self.about, differing)}. Leave "
                "--reuse out, and the pictures are judged anew"
            )

    def _attached(self):
        return [name for _, name, _ in self._sql.execute("PRAGMA database_list")]

    # --------------------------------------------------------------------------------------------------------- writing

    def add_verdict(self, sha256, judged):
        """Adds a [`Judged`] of the picture with this sha256 (`bytes`)."""
        self._write(
            "INSERT INTO verdicts VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (
                sha256,
                judged.probs.astype("<f4").tobytes(),
                json.dumps(judged.frames),
                judged.width,
                judged.height,
                judged.perceptual_hash,
                judged.seconds,
                judged.judged_at,
            ),
        )

    def add_place(self, id, stamp, position, *, num_bytes=None, sha256=None, error=None):
        """
        Adds a place, or what is new of it: the sha256 (`bytes`) of a picture with a verdict, or an error.

        One that the sources name twice has the first position, whether or not it was known when it was met again.
        """
        verdict = sha256 if error is None else None
        self._write(
            "INSERT INTO places VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO UPDATE SET "
            "position = iif(pass = excluded.pass, min(position, excluded.position), excluded.position), "
            "pass = excluded.pass, stamp = excluded.stamp, num_bytes = excluded.num_bytes, sha256 = excluded.sha256, "
            "verdict = excluded.verdict, error = excluded.error",
            (id, self.number, position, stamp, num_bytes, sha256, verdict, error),
        )

    def _write(self, statement, values):
        with writing_to(self.path):
            num_changed = self._sql.execute(statement, values).rowcount
        self.num_new += num_changed
        return num_changed

    def commit(self, reopen=True):
        """Ends the transaction: what was added until now outlives this process."""
        with writing_to(self.path):
            self._sql.execute("COMMIT")
            self.num_new = 0
            if reopen:
                self._sql.execute("BEGIN")

    def end_pass(self):
        """The pass is over and ROWS written: what is scanned next is a new one."""
        self._sql.execute("DELETE FROM places WHERE pass < ?", (self.number,))
        self.number += 1
        self._set("pass", self.number)
        self.commit()

    # --------------------------------------------------------------------------------------------------------- reading

    def counts(self):
        """Returns how many places of this pass have a verdict and how many an error (`tuple[int, int]`)."""
        return self._sql.execute(
            "SELECT count(verdict), count(error) FROM places WHERE pass = ?", (self.number,)
        ).fetchone()

    def keys(self):
        """
        Yields `(bytes, int)`: what a picture is like, in the order of this pass's places, and how many are the same.

        It is the perceptual hash; of a picture without one the sha256, which is near to no other key.
        """
        yield from self._sql.execute(
            "SELECT coalesce(perceptual_hash, verdicts.sha256) AS key, count(*) FROM places JOIN verdicts "
            "ON verdict = verdicts.sha256 WHERE pass = ? GROUP BY key ORDER BY min(position)",
            (self.number,),
        )

    def places(self):
        """Yields `(id, num_bytes, sha256, error, Judged or None)` of each of this pass's places, in their order."""
        num_categories = len(self.about["categories"])
        for id, num_bytes, sha256, error, probs, frames, *others in self._sql.execute(
            "SELECT id, num_bytes, places.sha256, error, probs, frames, width, height, perceptual_hash, seconds, "
            "judged_at FROM places LEFT JOIN verdicts ON verdict = verdicts.sha256 WHERE pass = ? "
            "ORDER BY position, id",
            (self.number,),
        ):
            judged = None
            if error is None:
                judged = Judged(np.frombuffer(probs, "<f4").reshape(-1, num_categories), json.loads(frames), *others)
            yield id, num_bytes, sha256, error, judged


class writing_to:
    """Makes an `OSError` with a way on of what is raised when a file cannot be written."""

    def __init__(self, path):
        self.path = path

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        if isinstance(error, (sqlite3.OperationalError, OSError)) and not isinstance(error, Timeout):
            is_locked = "locked" in str(error)  # by a scan that reuses it
            way = "wait for the process that reads it" if is_locked else "make room, or let this user write there"
            raise OSError(
                f"{self.path} could not be written ({getattr(error, 'strerror', None) or error}): {way}, and start "
                "the same command again; nothing that was finished is lost"
            ) from error


def ledger_of(rows):
    """Returns the `Path` of the ledger that lies beside a scan's rows."""
    return Path(rows).with_name(f"{Path(rows).name}.ledger")


def read_record(path):
    """
    Returns what a scan was of (`dict`): "sources", "model_fingerprint", "categories", "dtype", "max_pixels", "policy"
    (as its file holds it, or `None`), and "made", of the last start: "model", "device", "command", "versions", "date".

    Args:
        path (`str` or `os.PathLike`): of the rows, or of their ledger.

    Raises:
        ValueError: if there is no ledger.
    """
    path = Path(path)
    path = path if path.name.endswith(".ledger") else ledger_of(path)
    if not path.is_file():
        raise ValueError(f"there is no {path}, which lies beside the rows of a scan")
    sql = sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True)
    try:
        found = {name: json.loads(value) for name, value in sql.execute("SELECT name, value FROM about")}
        return {**found["about"], "made": found["made"]}
    except (sqlite3.DatabaseError, KeyError) as error:
        raise ValueError(f"{path} is no ledger of a scan ({error})") from None
    finally:
        sql.close()


def _differences(then, now, names):
    """`str`: "model_fingerprint is 'b', there it was 'a'; ..."."""
    return "; ".join(f"{name} is {_short(now.get(name))}, there it was {_short(then.get(name))}" for name in names)


def _short(value):
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 100 else f"{text[:80]}... ({len(text)} characters)"
