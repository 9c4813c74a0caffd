"""
A scan on one machine: places in, rows out; or a sample of them, of which nothing is kept.

A picture goes from its place through four steps. The ledger is asked whether the place was met already; threads read
its bytes and take their sha256; the ledger is asked whether it knows the picture; the engine decodes and judges those
that nobody knows, in batches, while the next ones are read.

Verdicts are written to the ledger a window of the engine's at a time. A scan that goes on forms the same batches as
one that was never stopped, where memory did not cut a window short: its probabilities are the same bits on one
machine.
"""

import random
import time

from safeqwen.pictures.errors import printable
from safeqwen.scan.items import BATCH_SIZE, NUM_WORKERS, judge_items
from safeqwen.scan.keep import Keeper, keep
from safeqwen.scan.ledger import Ledger
from safeqwen.scan.rows import RowMaker
from safeqwen.scan.similar import check_libraries
from safeqwen.scan.sources import Sources
from safeqwen.scan.summary import summarize


def scan(
    engine,
    sources,
    out,
    *,
    batch_size=BATCH_SIZE,
    num_workers=NUM_WORKERS,
    max_pixels=None,
    **kept,
):
    """
    Judges all pictures of the sources, and returns a [`Summary`] of the rows that it wrote.

    Args:
        engine ([`Engine`])
        sources, out: as `keep` takes them.
        batch_size (`int`): pictures, or frames of one, a forward, at most.
        num_workers (`int`): threads that read and fetch, and as many that decode.
        max_pixels (`int`, *optional*): larger pictures are shrunk to this many, by default to the processor's bound.
        kept: `model_fingerprint`, `policy`, `access`, `reuse`, `made` and `progress`, as `keep` takes them.

    Raises:
        ValueError, OSError: as `keep`; and if `max_pixels` is out of range.
        ImportError: if a library is missing.
        RuntimeError: if the model may not judge: its guard is untrained, or it is in training mode.
    """
    check_libraries()
    if refusal := engine.model.refusal():
        raise RuntimeError(f"SafeQwen cannot judge with these weights: {refusal}")
    engine.image_settings(max_pixels)  # raises if it is out of range
    settings = {"batch_size": batch_size, "num_workers": num_workers, "max_pixels": max_pixels}
    return keep(
        lambda keeper, places: judge_places(engine, keeper, places, **settings),
        sources,
        out,
        categories=engine.categories,
        dtype=engine.model.dtype,
        max_pixels=max_pixels,
        **kept,
    )


def sample(engine, sources, num_pictures, *, policy=None, access=None, seed=0, progress=None, **settings):
    """
    Judges some pictures of the sources, drawn at random, and keeps nothing.

    Args:
        engine, sources, policy, access, progress: as `scan` takes them.
        num_pictures (`int`): how many.
        seed (`int`): of the draw.
        settings: `batch_size`, `num_workers` and `max_pixels`, as `scan` takes them.

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
        keeper, started = Keeper(ledger, progress), time.perf_counter()
        judge_places(engine, keeper, drawn, **settings)
        seconds = time.perf_counter() - started
        summary = summarize(ledger, RowMaker(engine.categories, policy, None), keeper.counts, lambda row: None)
    summary.num_left_out = places.num_left_out
    return summary, num_places, seconds


def judge_places(engine, keeper, places, **settings):
    """
    Judges the pictures of places that were not met yet.

    Args:
        engine ([`Engine`]), keeper ([`Keeper`])
        places (iterable of [`Place`])
        settings: `batch_size`, `num_workers` and `max_pixels`, as `scan` takes them.
    """
    judge_items(engine, keeper.unmet(places), keeper.ledger.knows, keeper.found, keeper.commit, **settings)
