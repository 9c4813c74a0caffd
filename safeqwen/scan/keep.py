"""
What is kept of a scan, whoever judges: each verdict in the ledger as it comes, and the rows when all are there.

All that is decided about a place is decided by one thread, in the order of the places.
"""

import hashlib
import os
import time
from pathlib import Path

from safeqwen.pictures.errors import printable, without_secrets
from safeqwen.scan.items import Item
from safeqwen.scan.ledger import Ledger, ledger_of
from safeqwen.scan.rows import RowMaker, rows_file
from safeqwen.scan.sources import Access, Sources, is_url
from safeqwen.scan.storage import is_storage
from safeqwen.scan.summary import Counts, write_rows


SECONDS_BETWEEN_COMMITS = 1.0  # while nothing is judged


def keep(
    judge,
    sources,
    out,
    *,
    categories,
    dtype,
    max_pixels,
    model_fingerprint=None,
    policy=None,
    access=None,
    reuse=None,
    made=None,
    progress=None,
):
    """
    Keeps what comes of a scan: the ledger, and the rows at the end. Returns their [`Summary`].

    Args:
        judge (callable): ([`Keeper`], places). Puts a verdict or an error of each place where it is kept.
        sources (`list[str]`): as [`Sources`] takes them.
        out (`str` or `os.PathLike`): of the rows, ending in .jsonl or .parquet, or a folder for rows.jsonl. The ledger
            lies beside them; if it is there, the scan goes on.
        categories (`list[str]`), dtype (`torch.dtype` or `str`): of the model that judges.
        max_pixels (`int`, *optional*): the bound of pixels that it judges with.
        model_fingerprint (`str`, *optional*): of the weights.
        policy ([`SafetyPolicy`], *optional*): decides.
        access ([`Access`], *optional*)
        reuse (`str` or `os.PathLike`, *optional*): the ledger of another scan, whose verdicts are taken over.
        made (`dict`, *optional*): for the record.
        progress (callable, *optional*): called with a [`Counts`] after each place.

    Raises:
        ValueError: if a source is not there, none has a picture, or `out` is of another scan, or in use.
        OSError: if rows or ledger cannot be written. What was finished is kept.
    """
    rows, access = rows_file(out), access or Access()
    places = Sources(sources, access, exclude=[rows])
    ledger = ledger_of(rows)
    about = {
        "sources": [*map(_recorded, sources)],
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
        keeper = Keeper(ledger, progress)
        judge(keeper, places)
        ledger.commit()
        if not sum(ledger.counts()):
            raise ValueError(f"there is no picture in {', '.join(map(printable, sources))}; nothing was written")
        summary = write_rows(ledger, rows, RowMaker(categories, policy, model_fingerprint), keeper.counts)
        ledger.end_pass()
    summary.num_left_out = places.num_left_out
    return summary


def _recorded(source):
    """A source as the ledger records it: a path from the root, a URL without keys but with a digest of them."""
    if not is_url(source):
        return source if is_storage(source) else str(Path(source).absolute())
    shown = without_secrets(source)
    return shown if shown == source else f"{shown} {hashlib.sha256(os.fsencode(source)).hexdigest()[:8]}"


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
