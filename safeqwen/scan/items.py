"""
Items: pictures on their way through a scan, which threads read ahead and an engine judges. Here nothing is kept.

Threads read the bytes of the next items and take their sha256. A picture on which there is a verdict already is not
judged; of several copies the first is, and the others wait for it. The engine's workers decode while the model judges
the pictures before.
"""

import datetime
import hashlib
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from safeqwen.judging.engine import window_of
from safeqwen.judging.verdict import reason_of
from safeqwen.pictures.errors import printable
from safeqwen.pictures.source import read_bytes
from safeqwen.scan.ledger import Judged
from safeqwen.scan.similar import perceptual_hash
from safeqwen.scan.sources import Place


BATCH_SIZE = 16
NUM_WORKERS = 4


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
        batch_size, num_workers, max_pixels: as `local.scan` takes them.
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
