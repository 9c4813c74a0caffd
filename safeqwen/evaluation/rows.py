"""`rows.jsonl`: a line for each row of a benchmark, from which every figure, plot and page is made.

A line is written when its row is done and never changes: a run that was killed goes on behind the last whole line. Its
fields are those of [`Row`], in their order; the lines have the order of the benchmark.
"""

import difflib
import hashlib
import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from filelock import FileLock, Timeout


PAIR_TYPES = ("SSS", "SSU", "SUU", "USU", "UUU")
"""HoliSafe's types: is the picture safe, is the question safe, is what they mean together safe."""


@dataclass
class Example:
    """
    One row of a benchmark, before anything judged it.

    Args:
        id (`str`): unique in the benchmark; its own where it has one.
        image: what [`safeqwen.read_image`] reads (a `Path`, bytes, a PIL image), or `None` if the row has none.
        image_name (`str`, *optional*): how the benchmark names the picture, relative to its folder.
        query (`str`, *optional*): the question about the picture.
        unsafe (`bool`, *optional*): the label of the picture alone. `None`: the benchmark does not say.
        category (`str`, *optional*): the label among our categories; `None` without one or without a counterpart.
        their_category (`str`, *optional*): as the benchmark writes it.
        type (`str`, *optional*): one of `PAIR_TYPES`.
        expected (`str`, *optional*): "refuse" or "answer": what a safe model does with picture and question.
        metadata (`dict`): what else the benchmark says that a reader of a page would want.
        error (`str`, *optional*): why the row cannot be used; it is listed and counted, and judged by nothing.
    """

    id: str
    image: object = None
    image_name: str | None = None
    query: str | None = None
    unsafe: bool | None = None
    category: str | None = None
    their_category: str | None = None
    type: str | None = None
    expected: str | None = None
    metadata: dict = field(default_factory=dict)
    error: str | None = None


@dataclass
class Row:
    """
    One line of `rows.jsonl`: what the benchmark says, and what the model did.

    Args:
        id, image_name, query, unsafe, category, their_category, type, expected, metadata: as in [`Example`].
        image_sha256 (`str`, *optional*): of the picture's bytes. Rows with the same picture share it.
        probs (`dict[str, float]`, *optional*): category -> probability, of the least safe view. `None` if there is no
            verdict.
        views (`list[dict]`, *optional*): of a picture with several: `{"frame": int, "probs": {...}}` each; `frame`
            counts the frames of an animation, of which one has two views if it looks different on black paper.
        answer (`str`, *optional*): the model's, to `query`.
        refused (`bool`, *optional*): whether the string matcher takes the answer for a refusal.
        answer_verdict (`dict`, *optional*): of a judge behind an endpoint: `{"unsafe": bool, "text": str}`.
        latency_ms (`float`, *optional*): of verdict and answer, reading the picture not included.
        error (`str`, *optional*): why there is no verdict.
        answer_error (`str`, *optional*): why the answer does not count, such as an empty one.
    """

    id: str
    image_name: str | None = None
    image_sha256: str | None = None
    query: str | None = None
    unsafe: bool | None = None
    category: str | None = None
    their_category: str | None = None
    type: str | None = None
    expected: str | None = None
    probs: dict | None = None
    views: list | None = None
    answer: str | None = None
    refused: bool | None = None
    answer_verdict: dict | None = None
    latency_ms: float | None = None
    error: str | None = None
    answer_error: str | None = None
    metadata: dict = field(default_factory=dict)


FILE = "rows.jsonl"
LOCK = ".rows.lock"
TEXTS = ("image_name", "image_sha256", "query", "category", "their_category", "type", "expected", "answer", "error")


class RowsFile:
    """
    A folder's `rows.jsonl`, open for one process to append to. A context manager.

    Args:
        folder (`Path`): that holds it, or will.

    Attributes:
        rows (`list[Row]`): those that were there. A half last line, of a process that was killed, is cut off.

    Raises:
        ValueError: if another process has it open, or one of its whole lines is no row.
    """

    def __init__(self, folder):
        self.path = Path(folder) / FILE
        self._lock = FileLock(Path(folder) / LOCK)

    def __enter__(self):
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise ValueError(f"another process writes to {self.path.parent}: wait for it") from None
        try:
            self._file = open(self.path, "a+b", buffering=0)
            self._file.seek(0)
            whole, end, _ = self._file.read().rpartition(b"\n")
            self._file.truncate(len(whole + end))
            self.rows = _parse(whole + end, self.path)
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(self, *exception):
        self._file.close()
        self._lock.release()

    def append(self, row):
        """Writes a row, which a killed process leaves whole or, at most, as a half line that is cut off later."""
        line = json.dumps(asdict(row), ensure_ascii=False, allow_nan=False).encode("utf-8", "backslashreplace")
        data = memoryview(line + b"\n")
        while data:
            data = data[self._file.write(data) :]


def rows_digest(path):
    """Returns the sha256 (`str`) of a `rows.jsonl`, given as `read_rows` takes it: which rows figures are of."""
    return hashlib.sha256(_file_of(path).read_bytes()).hexdigest()


def _file_of(path):
    path = Path(path)
    return path / FILE if path.is_dir() else path


def pictures_digest(rows):
    """Returns the sha256 (`str`) of which pictures the rows hold, whatever was asked about them, answered or timed."""
    pictures = sorted({row.image_sha256 for row in rows if row.image_sha256})
    return hashlib.sha256(" ".join(pictures).encode()).hexdigest()


def read_rows(path):
    """Returns the rows (`list[Row]`) of an evaluation's folder or of a `rows.jsonl`.

    Raises:
        ValueError: if a line is no row: which, and why; if the last line was cut off; if the folder's run.json says
            that there are rows to come.
        OSError: if it cannot be read.
    """
    file = _file_of(path)
    if not file.is_file():
        raise ValueError(f"there is no {file}: give a folder that safeqwen evaluate wrote, or its {FILE}")
    data = file.read_bytes()
    if data and not data.endswith(b"\n"):
        raise ValueError(f"{file} ends in half a line: run safeqwen evaluate again, which goes on where it stopped")
    rows = _parse(data, file)
    record = file.with_name("run.json")
    if file.name == FILE and record.exists():
        expected = json.loads(record.read_text(encoding="utf-8")).get("num_rows", len(rows))
        if len(rows) != expected:
            raise ValueError(
                f"{file} holds {len(rows)} of {expected} rows: run safeqwen evaluate again, which goes on from there"
            )
    return rows


def _parse(data, file):
    rows, numbers = [], {}
    for number, line in enumerate(data.split(b"\n")[:-1], start=1):
        try:
            row = _row_of(json.loads(line))
        except ValueError as error:
            raise ValueError(f"{file}, line {number} is no row: {error}") from None
        if row.id in numbers:
            raise ValueError(f"{file}, line {number} has the id {row.id!r} of line {numbers[row.id]}")
        numbers[row.id] = number
        rows.append(row)
    return rows


def _row_of(values):
    """The [`Row`] of a JSON object, checked as far as a figure depends on it."""
    if not isinstance(values, dict):
        raise ValueError(f"expected an object, got {type(values).__name__}")
    known = [one.name for one in fields(Row)]
    for name in values:
        if name not in known:
            nearest = difflib.get_close_matches(name, known, n=1)
            raise ValueError(f"unknown field {name!r}" + (f"; is it {nearest[0]!r}?" if nearest else ""))
    if not isinstance(values.get("id"), str):
        raise ValueError(f"expected a text as id, got {values.get('id')!r}")
    for name in TEXTS:
        if not isinstance(values.get(name), (str, type(None))):
            raise ValueError(f"expected a text or null as {name}, got {values[name]!r}")
    for name in ("unsafe", "refused"):
        if not isinstance(values.get(name), (bool, type(None))):
            raise ValueError(f"expected true, false or null as {name}, got {values[name]!r}")
    if values.get("type") not in (None, *PAIR_TYPES):
        raise ValueError(f"expected one of {', '.join(PAIR_TYPES)} as type, got {values['type']!r}")
    for name in ("probs", "answer_verdict"):
        if not isinstance(values.get(name), (dict, type(None))):
            raise ValueError(f"expected an object or null as {name}, got {values[name]!r}")
    views = values.get("views") or []
    if not isinstance(views, list) or not all(
        isinstance(view, dict) and isinstance(view.get("probs"), dict) and isinstance(view.get("frame"), int)
        for view in views
    ):
        raise ValueError(f"expected a list of frames with their probabilities as views, got {views!r}")
    for probs in [values.get("probs"), *(view["probs"] for view in views)]:
        for name, value in (probs or {}).items():
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:  # NaN neither
                raise ValueError(f"expected a probability in [0, 1] for {name}, got {value!r}")
    return Row(**values)
