"""
A scan on one machine: places in, rows out.

A picture goes from its place through four steps. The ledger is asked whether the place was met already; threads read
its bytes and take their sha256; the ledger is asked whether it knows the picture; the engine decodes and judges those
that nobody knows, in batches, while the next ones are read. All that is decided about a picture is decided by one
thread, in the order of the places: of several copies the first is judged, and the others wait for it.

Verdicts are written to the ledger a window of the engine's at a time. A scan that goes on forms the same batches as
one that was never stopped, where memory did not cut a window short: its probabilities are the same bits on one
machine.
"""

import datetime
import hashlib
import random
import time
from collections import Counter, deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from safeqwen.judging.engine import window_of
from safeqwen.judging.verdict import reason_of
from safeqwen.pictures.errors import printable
from safeqwen.pictures.source import read_bytes
from safeqwen.scan import INSTALL
from safeqwen.scan.ledger import Judged, Ledger, ledger_of, writing_to
from safeqwen.scan.rows import RowMaker, is_flagged, rows_file, rows_writer
from safeqwen.scan.similar import near_identical, perceptual_hash
from safeqwen.scan.sources import Access, Place, Sources


BATCH_SIZE = 16
NUM_WORKERS = 4
SECONDS_BETWEEN_COMMITS = 1.0  # while nothing is judged
NUM_SHOWN = 5  # errors, and groups that disagree, in a summary


@dataclass(eq=False)
class Item:
    """A picture on its way through a scan."""

    place: Place
    position: int
    data: bytes | None = None  # until it was decoded
    sha256: bytes | None = None
    num_bytes: int | None = None
    size: tuple | None = None
    perceptual_hash: bytes | None = None
    error: str | None = None


@dataclass
class Counts:
    """How many places were met by this process: those that it knew from before, `num_judged` pictures, errors."""

    num_known: int = 0
    num_copies: int = 0
    num_judged: int = 0
    num_errors: int = 0
    seconds: float = 0.0  # the model's

    @property
    def num_met(self):
        return self.num_known + self.num_copies + self.num_judged + self.num_errors


@dataclass
class Summary:
    """What a scan found: of all rows, whenever they were judged."""

    counts: Counts
    num_rows: int = 0
    num_errors: int = 0
    num_flagged: int = 0
    num_left_out: int = 0
    num_groups: int = 0
    labels: Counter = field(default_factory=Counter)
    actions: Counter = field(default_factory=Counter)  # of a policy: "allow", "flag", "block"
    errors: list = field(default_factory=list)  # the first rows
    disagreeing: dict = field(default_factory=dict)  # of the first groups: number -> whether flagged -> the first row
    num_disagreeing: int = 0


def scan(
    engine,
    sources,
    out,
    *,
    policy=None,
    access=None,
    batch_size=BATCH_SIZE,
    num_workers=NUM_WORKERS,
    max_pixels=None,
    reuse=None,
    model_fingerprint=None,
    made=None,
    progress=None,
):
    """
    Judges all pictures of the sources, and returns a [`Summary`] of the rows that it wrote.

    Args:
        engine ([`Engine`])
        sources (`list[str]`): as [`Sources`] takes them.
        out (`str` or `os.PathLike`): of the rows, ending in .jsonl or .parquet, or a folder for rows.jsonl. The ledger
            lies beside them; if it is there, the scan goes on.
        policy ([`SafetyPolicy`], *optional*): decides.
        access ([`Access`], *optional*)
        batch_size (`int`): pictures, or frames of one, a forward, at most.
        num_workers (`int`): threads that read and fetch, and as many that decode.
        max_pixels (`int`, *optional*): larger pictures are shrunk to this many, by default to the processor's bound.
        reuse (`str` or `os.PathLike`, *optional*): the ledger of another scan, whose verdicts are taken over.
        model_fingerprint (`str`, *optional*): of the weights.
        made (`dict`, *optional*): for the record.
        progress (callable, *optional*): called with a [`Counts`] after each place.

    Raises:
        ValueError: if a source is not there, none has a picture, or `out` is of another scan, or in use.
        OSError: if rows or ledger cannot be written. What was finished is kept.
        ImportError: if a library is missing.
        RuntimeError: if the model may not judge: its guard is untrained, or it is in training mode.
    """
    check_libraries()
    if refusal := engine.model.refusal():
        raise RuntimeError(f"SafeQwen cannot judge with these weights: {refusal}")
    engine.image_settings(max_pixels)  # raises if it is out of range
    settings = {"batch_size": batch_size, "num_workers": num_workers, "max_pixels": max_pixels}
    return keep(
        lambda ledger, places: judge_places(engine, ledger, places, progress=progress, **settings),
        sources,
        out,
        categories=engine.categories,
        dtype=engine.model.dtype,
        max_pixels=max_pixels,
        policy=policy,
        access=access,
        reuse=reuse,
        model_fingerprint=model_fingerprint,
        made=made,
    )


def keep(
    judge,
    sources,
    out,
    *,
    categories,
    dtype,
    max_pixels,
    policy=None,
    access=None,
    reuse=None,
    model_fingerprint=None,
    made=None,
):
    """
    Keeps what comes of a scan, whoever judges: the ledger, and the rows at the end. Returns their [`Summary`].

    Args:
        judge (callable): ([`Ledger`], places) -> [`Counts`]. Puts a verdict or an error of each place into the ledger.
        categories (`list[str]`), dtype (`torch.dtype`), max_pixels (`int`, *optional*): of the model that judges.
        sources, out, policy, access, reuse, model_fingerprint, made: as `scan` takes them, with the same errors.
    """
    rows, access = rows_file(out), access or Access()
    places = Sources(sources, access, exclude=[rows])
    ledger = ledger_of(rows)
    about = {
        "sources": [source if "://" in source else str(Path(source).absolute()) for source in sources],
        "column": access.column,
        "model_fingerprint": model_fingerprint,
        "categories": categories,
        "dtype": str(dtype).removeprefix("torch."),
        "max_pixels": max_pixels,
        "policy": policy and policy.to_dict(),
    }
    rows.parent.mkdir(parents=True, exist_ok=True)
    if rows.exists() and not ledger.exists():
        raise ValueError(f"{rows} is there without {ledger.name}, its ledger: move it away, or give another --out")
    with Ledger(ledger, about, made) as ledger:
        if reuse is not None:
            ledger.reuse(reuse)
        counts = judge(ledger, places)
        ledger.commit()
        if not sum(ledger.counts()):
            raise ValueError(f"there is no picture in {', '.join(map(printable, sources))}; nothing was written")
        summary = write_rows(ledger, rows, RowMaker(categories, policy, model_fingerprint), counts)
        ledger.end_pass()
    summary.num_left_out = places.num_left_out
    return summary


def check_libraries():
    """Raises an `ImportError` that says what to do if a library is missing."""
    try:
        import imagehash  # noqa: F401
    except ModuleNotFoundError as error:
        raise ImportError(f"a scan needs {error.name}: {INSTALL}") from error


def sample(engine, sources, num_pictures, *, policy=None, access=None, seed=0, **settings):
    """
    Judges some pictures of the sources, drawn at random, and keeps nothing.

    Args:
        engine, sources, policy, access: as `scan` takes them.
        num_pictures (`int`): how many.
        seed (`int`): of the draw.
        settings: `batch_size`, `num_workers`, `max_pixels`, `progress`, as `scan` takes them.

    Returns:
        `tuple`: the [`Summary`] of the sample, how many places there are (`int`), and the seconds (`float`) that the
        sample took.
    """
    check_libraries()
    engine.image_settings(settings.get("max_pixels"))
    places, rng, drawn, num_places = Sources(sources, access), random.Random(seed), [], 0
    for place in places:  # reservoir sampling: each subset is as likely (Vitter 1985, algorithm R)
        if len(drawn) < num_pictures:
            drawn.append((num_places, place))
        elif (i := rng.randrange(num_places + 1)) < num_pictures:
            drawn[i] = (num_places, place)
        num_places += 1
    if not num_places:
        raise ValueError(f"there is no picture in {', '.join(map(printable, sources))}")
    drawn = [place for _, place in sorted(drawn, key=lambda pair: pair[0])]  # files are read from front to end
    with Ledger(None, {"categories": engine.categories}) as ledger:
        started = time.perf_counter()
        counts = judge_places(engine, ledger, drawn, **settings)
        seconds = time.perf_counter() - started
        summary = _summarize(ledger, RowMaker(engine.categories, policy, None), counts, lambda row: None)
    summary.num_left_out = places.num_left_out
    return summary, num_places, seconds


# ------------------------------------------------------------------------------------------------------------- judging


def judge_places(engine, ledger, places, *, progress=None, **settings):
    """
    Puts a verdict or an error into the ledger for each of the places, and returns the [`Counts`].

    Args:
        engine ([`Engine`]), ledger ([`Ledger`])
        places (iterable of [`Place`])
        progress, settings: as `scan` takes them; `settings` are `batch_size`, `num_workers` and `max_pixels`.
    """
    keeper = Keeper(ledger, progress)
    judge_items(engine, keeper.unmet(places), ledger.knows, keeper.found, keeper.commit, **settings)
    return keeper.counts


class Keeper:
    """
    Puts into a ledger what comes of places, and counts it.

    Args:
        ledger ([`Ledger`])
        progress (callable, *optional*): called with the [`Counts`] after each place.
    """

    def __init__(self, ledger, progress=None):
        self.ledger, self.progress, self.counts = ledger, progress, Counts()
        self.last_commit = time.monotonic()

    def unmet(self, places):
        """Yields an [`Item`] for each place that the ledger has not met. Commits now and then, whatever it finds."""
        for position, place in enumerate(places):
            if time.monotonic() - self.last_commit >= SECONDS_BETWEEN_COMMITS:
                self.commit()
            if self.ledger.has_met(place.id, place.stamp, position):
                self._met("num_known")
            else:
                yield Item(place, position)

    def found(self, item, judged):
        """Puts what `judge_items` found of an item. Without `judged` and error the ledger knows the picture."""
        if judged is not None:
            self.ledger.add_verdict(item.sha256, judged)
            self.counts.seconds += judged.seconds
        self.ledger.add_place(
            item.place.id,
            item.place.stamp,
            item.position,
            num_bytes=item.num_bytes,
            sha256=item.sha256,
            error=item.error,
        )
        self._met("num_errors" if item.error is not None else "num_copies" if judged is None else "num_judged")

    def commit(self):
        """What was found until now outlives this process."""
        self.ledger.commit()
        self.last_commit = time.monotonic()

    def _met(self, kind):
        setattr(self.counts, kind, getattr(self.counts, kind) + 1)
        if self.progress is not None:
            self.progress(self.counts)


def judge_items(
    engine,
    items,
    knows,
    found,
    window_ended=None,
    *,
    batch_size=BATCH_SIZE,
    num_workers=NUM_WORKERS,
    max_pixels=None,
):
    """
    Reads and judges pictures, each one of several copies once.

    Args:
        engine ([`Engine`])
        items (iterable of [`Item`]): asked for by this thread alone, and never within a window of the engine's.
        knows (callable): the sha256 of a picture -> whether there is a verdict on it already.
        found (callable): called with each item, which has an error or a sha256, and with a [`Judged`], or `None` if
            there is an error, or a verdict on the picture already.
        window_ended (callable, *optional*): called after each whole window of the engine's.
        batch_size, num_workers, max_pixels: as `scan` takes them.
    """
    waiting = {}  # sha256 -> the copies of a picture that is on its way through the engine

    def unknown():
        """Yields the pictures to judge; what needs no judging is found. It runs between two windows of the engine."""
        for item in _read_ahead(items, num_workers):
            if item.error is not None or knows(item.sha256):
                item.data = None
                found(item, None)
            elif item.sha256 in waiting:
                item.data = None
                waiting[item.sha256].append(item)
            else:
                waiting[item.sha256] = [item]
                yield item

    verdicts = engine.judge_each(
        unknown(),
        _views,
        batch_size=batch_size,
        num_workers=num_workers,
        max_pixels=max_pixels,
        thumbnails=False,
    )
    window = window_of(batch_size)
    for number, verdict in enumerate(verdicts, start=1):
        first, *copies = waiting.pop(verdict.image.sha256)
        judged = None if verdict.error is not None else _judged(first, verdict)
        for item in (first, *copies):
            item.error = _reason(verdict.error, first.place.id)
            found(item, judged if item is first else None)
        if number % window == 0 and window_ended is not None:
            window_ended()


def _read_ahead(items, num_workers):
    """Yields the items in their order with their bytes, or why there are none; threads read some ahead."""
    pending = deque()
    with ThreadPoolExecutor(max(1, num_workers)) as pool:
        try:
            for item in items:
                pending.append(pool.submit(_load, item))
                if len(pending) > 2 * num_workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _load(item):
    try:
        item.data = item.place.load()
    except Exception as error:  # whatever a file system raises for one picture
        item.error = _reason(reason_of(error), item.place.id)
        return item
    item.num_bytes, item.sha256 = len(item.data), hashlib.sha256(item.data).digest()
    return item


def _views(item):
    """The views of a picture; called by the engine's workers."""
    data, item.data = item.data, None
    views = read_bytes(data, name=item.place.id)
    item.size = views[0].size
    if len({view.info.get("safeqwen_frame") for view in views}) == 1:
        item.perceptual_hash = perceptual_hash(views[0])
    return views


def _judged(item, verdict):
    return Judged(
        probs=verdict.probs.numpy(),
        frames=verdict.frames,
        width=item.size[0],
        height=item.size[1],
        perceptual_hash=item.perceptual_hash,
        seconds=round(verdict.seconds, 6),
        judged_at=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    )


def _reason(text, id):
    """An error without the name before it, which the row has; on one line."""
    if text is None:
        return None
    for name in (id, printable(id)):
        text = text.removeprefix(f"{name}: ")
    return " ".join(text.split()).encode(errors="backslashreplace").decode()


# ---------------------------------------------------------------------------------------------------------------- rows


def write_rows(ledger, path, maker, counts):
    """Writes the rows of the ledger's pass to a file, in one step, and returns their [`Summary`]."""
    with writing_to(path), rows_writer(path, maker.categories, maker.policy) as write:
        return _summarize(ledger, maker, counts, write)


def _summarize(ledger, maker, counts, write):
    groups = _groups(ledger)
    disagreeing = _disagreeing(ledger, maker, groups)
    summary = Summary(counts, num_groups=len({*groups.values()}), num_disagreeing=len(disagreeing))
    summary.disagreeing = shown = {group: {} for group in sorted(disagreeing)[:NUM_SHOWN]}
    for place in ledger.places():
        row = maker.row(place)
        group = groups.get(_key(place))
        if group is not None:
            row |= {"group": group, "group_disagrees": group in disagreeing}
        write(row)
        summary.num_rows += 1
        if row["error"] is not None:
            summary.num_errors += 1
            if len(summary.errors) < NUM_SHOWN:
                summary.errors.append(row)
            continue
        summary.num_flagged += is_flagged(row)
        summary.labels[row["label"]] += 1
        if row["decision"] is not None:
            summary.actions[row["decision"]["would_action"]] += 1
        if group in shown:
            shown[group].setdefault(is_flagged(row), row)
    return summary


def _key(place):
    *_, sha256, _, judged = place
    return None if judged is None else judged.perceptual_hash or sha256


def _groups(ledger):
    """Key -> number of its group (`dict[bytes, int]`), of those in one. Groups are numbered in their order."""
    keys, counts = [], []
    for key, count in ledger.keys():
        keys.append(key)
        counts.append(count)
    firsts = near_identical(keys).tolist()
    sizes = np.bincount(firsts, weights=counts, minlength=len(keys)) if keys else []
    numbers = {}
    return {key: numbers.setdefault(i, len(numbers) + 1) for key, i in zip(keys, firsts) if sizes[i] > 1}


def _disagreeing(ledger, maker, groups):
    """Numbers of the groups (`set[int]`) in which one picture is flagged and another is not."""
    if not groups:
        return set()
    flagged, unflagged = set(), set()
    for place in ledger.places():
        if (group := groups.get(_key(place))) is not None:
            (flagged if is_flagged(maker.row(place)) else unflagged).add(group)
    return flagged & unflagged
