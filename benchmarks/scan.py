"""
What a scan costs beside its model, what a second one costs, how its memory grows, and whether kills lose anything.

    python -m benchmarks.scan speed [--num 1000] [--rounds 5] [--kind photos | drawings]
    python -m benchmarks.scan memory [--num 10000] [--plot docs/scanning-memory.png]
    python -m benchmarks.scan kills [--num 2000] [--kills 20]

All are of the demo checkpoint, on pictures that are drawn first: "photos" are JPEGs of 640 x 480 pixels with a noisy
background, "drawings" PNGs of 112 x 112.

- **speed**: a whole scan, against `Engine.judge` on the same batches, prepared before; in one process, in turns, and
  the ratio's median with its smallest and largest value. "second" is the same scan once more, against the first.
  "judging_thread" is the same ratio of the CPU time of the thread that judges: with OMP_NUM_THREADS=1 what is left
  where reading has other cores for itself, and what others on the machine do not lengthen.
- **memory**: the resident set of the process while one scan runs, and how much it grows behind the first fifth.
- **kills**: one scan that is killed (SIGKILL) again and again, at moments drawn so that they spread over all of it,
  against one that was left alone: whether the rows are the same, but for the fields of time.

The demo sees about 224 x 224 pixels of a picture: 64 tokens. `--side 112` shows it 16, which takes no longer than
a JPEG takes to be read and prepared. The last line of output is one JSON object.
"""

import argparse
import json
import os
import random
import shutil
import signal
import sqlite3
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
import torch
from PIL import Image

import safeqwen
from benchmarks.measure import interleave
from safeqwen.judging.engine import WINDOW, Engine
from safeqwen.scan.ledger import ledger_of
from safeqwen.scan.local import scan
from safeqwen.scan.rows import read_rows
from tools.demo.pictograms import FIRST_HELD_OUT_SEED, draw


SEED = FIRST_HELD_OUT_SEED + 9_000_000
BATCH_SIZE = 16
TIMES = ("seconds", "judged_at")  # fields of a row that no two scans share
NUM_SAMPLES = 100  # of the resident set


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=MEASURED)
    parser.add_argument("--model", help="(default: the demo checkpoint)")
    parser.add_argument("--side", type=int, help="show the model all pictures at about SIDE x SIDE pixels")
    parser.add_argument("--num", type=int, help="pictures (default: 1000, 10000 for memory, 2000 for kills)")
    parser.add_argument("--kind", choices=KINDS, default="photos", help="of the pictures (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="of speed (default: %(default)s)")
    parser.add_argument("--kills", type=int, default=20, help="(default: %(default)s)")
    parser.add_argument("--plot", type=Path, help="file for the curve of memory")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(MEASURED[args.what](Path(folder), args)))


def load_engine(args):
    model, processor = safeqwen.load(args.model)
    if args.side:
        pixels = args.side**2
        processor.image_processor.size = {"shortest_edge": pixels, "longest_edge": pixels + pixels // 10}
    return Engine(model, processor)


# ------------------------------------------------------------------------------------------------------------ pictures


def photo(number):
    """A picture of 640 x 480 pixels that compresses about as a photograph does, with a drawing in it."""
    rng = np.random.default_rng(number)
    soft = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize((640, 480))
    noise = rng.integers(-8, 9, (480, 640, 1))
    picture = Image.fromarray((np.asarray(soft) + noise).clip(0, 255).astype(np.uint8))
    picture.paste(drawing(number).resize((300, 300)), (170, 90))
    return picture


def drawing(number):
    categories = safeqwen.CATEGORIES
    return draw(categories[number % len(categories)].name, SEED + number, size=112).convert("RGB")


KINDS = {"photos": (photo, ".jpg"), "drawings": (drawing, ".png")}


def collection(folder, num_pictures, kind):
    """Writes that many different pictures into a new folder, and returns it (`Path`)."""
    folder.mkdir()
    make, suffix = KINDS[kind]
    for number in range(num_pictures):
        make(number).save(folder / f"{number:06d}{suffix}")
    return folder


# --------------------------------------------------------------------------------------------------------------- speed


def speed(folder, args):
    engine = load_engine(args)
    pictures = collection(folder / "in", args.num or 1000, args.kind)
    paths = sorted(pictures.iterdir())
    frames = [frame for path in paths for frame in engine.prepare(safeqwen.read_image(path))]
    second, judging, size = [], {"ours": [], "theirs": []}, WINDOW * BATCH_SIZE

    def ours(i):
        out = folder / f"{i}.jsonl"
        started, busy = time.perf_counter(), time.thread_time()
        scan(engine, [str(pictures)], out, batch_size=BATCH_SIZE)
        ended = time.perf_counter()
        judging["ours"].append(time.thread_time() - busy)
        scan(engine, [str(pictures)], out, batch_size=BATCH_SIZE)
        second.append((time.perf_counter() - ended) / (ended - started))
        return ended - started

    def theirs(i):
        busy = time.thread_time()
        for start in range(0, len(frames), size):
            engine.judge(frames[start : start + size], batch_size=BATCH_SIZE)
        judging["theirs"].append(time.thread_time() - busy)

    theirs(0), judging["theirs"].clear()  # warms up
    pairs = interleave(ours, theirs, num_pairs=args.rounds, seconds=0, num_warmups=0)
    ratios = [first / alone for first, alone in pairs]
    return {
        "pictures": len(paths),
        "kind": args.kind,
        "tokens": frames[0].num_tokens,
        "threads": torch.get_num_threads(),
        "scan_seconds": statistics.median(first for first, _ in pairs),
        "model_seconds": statistics.median(alone for _, alone in pairs),
        "ratio": _spread(ratios),
        "judging_thread": _spread([a / b for a, b in zip(judging["ours"], judging["theirs"])]),
        "second": _spread(second),
    }


def _spread(values):
    return {"median": statistics.median(values), "smallest": min(values), "largest": max(values)}


# -------------------------------------------------------------------------------------------------------------- memory


def memory(folder, args):
    engine = load_engine(args)
    num_pictures = args.num or 10_000
    pictures = collection(folder / "in", num_pictures, args.kind)
    process, step, curve = psutil.Process(), max(1, num_pictures // NUM_SAMPLES), []

    def sample(counts):
        if counts.num_met % step == 0:
            curve.append((counts.num_met, process.memory_info().rss / 2**20))

    before = process.memory_info().rss / 2**20
    started = time.perf_counter()
    scan(engine, [str(pictures)], folder / "rows.jsonl", batch_size=BATCH_SIZE, progress=sample)
    seconds = time.perf_counter() - started
    after = process.memory_info().rss / 2**20
    if args.plot:
        plot(curve, before, args.plot)
    late = curve[len(curve) // 5 :]
    slope, _ = statistics.linear_regression(*zip(*late))
    return {
        "pictures": num_pictures,
        "kind": args.kind,
        "seconds": seconds,
        "mib_before": before,
        "mib_at_a_fifth": late[0][1],
        "mib_at_the_end": curve[-1][1],
        "mib_largest": max(mib for _, mib in curve),
        "mib_after_the_rows": after,
        "kib_a_picture_behind_a_fifth": 1024 * slope,
    }


def plot(curve, before, path):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3), layout="constrained")
    axes = figure.subplots()
    axes.plot(*zip(*curve), label="while it scans")
    axes.axhline(before, color="grey", linestyle=":", label="before, with the model loaded")
    axes.set(xlabel="pictures judged", ylabel="resident set, MiB", ylim=(0, None), xlim=(0, curve[-1][0]))
    axes.legend(loc="lower right", frameon=False)
    figure.savefig(path, dpi=120)


# --------------------------------------------------------------------------------------------------------------- kills


def kills(folder, args):
    pictures = mixed(folder / "in", args.num or 2000)
    rng = random.Random(0)

    def start(out):
        child = os.fork()
        if child == 0:  # the model is loaded here: torch's threads do not come along
            torch.set_num_threads(torch.get_num_threads())  # sets its pool up anew before several threads do
            scan(load_engine(args), [str(pictures)], out, batch_size=BATCH_SIZE)
            os._exit(0)
        return child

    started = time.perf_counter()
    os.waitpid(start(folder / "alone.jsonl"), 0)
    seconds = time.perf_counter() - started
    remaining, at = seconds, []
    out = folder / "rows.jsonl"
    for left in range(args.kills, 0, -1):
        child = start(out)
        time.sleep(rng.uniform(0, 2 * remaining / (left + 2)))
        os.kill(child, signal.SIGKILL)
        if os.waitpid(child, 0)[1] != signal.SIGKILL:
            break  # it was through
        at.append(num_finished(out))
        remaining = seconds * (1 - at[-1] / len(os.listdir(pictures)))
    os.waitpid(start(out), 0)
    alone, killed = ([without_times(row) for row in read_rows(path)] for path in (folder / "alone.jsonl", out))
    return {
        "rows": len(alone),
        "errors": sum(row["error"] is not None for row in alone),
        "groups": len({row["group"] for row in alone} - {None}),
        "seconds_undisturbed": seconds,
        "kills": len(at),
        "finished_at_each_kill": at,
        "rows_differ": sum(a != b for a, b in zip(alone, killed)) + abs(len(alone) - len(killed)),
    }


def mixed(folder, num_pictures):
    """Writes drawings among which are copies, near-identical ones, animations and broken files; returns the folder."""
    collection(folder, num_pictures, "drawings")
    paths, rng = sorted(folder.iterdir()), random.Random(0)
    rng.shuffle(paths)
    changed, others = paths[: num_pictures // 4], paths[num_pictures // 4 :]
    for path in changed:
        kind, other = rng.randrange(5), rng.choice(others)
        if kind == 0:
            shutil.copy(other, path)
        elif kind == 1:
            Image.open(other).resize((90, 90)).save(path)
        elif kind == 2:
            path.write_bytes(other.read_bytes()[: rng.randrange(500)])
        else:
            frames = [drawing(rng.randrange(10**6)) for _ in range(3)]
            frames[0].save(path.with_suffix(".gif"), save_all=True, append_images=frames[1:])
            path.unlink()
    return folder


def num_finished(out):
    """How many places a killed scan has in its ledger (`int`)."""
    sql = sqlite3.connect(ledger_of(out))
    try:
        return sql.execute("SELECT count(*) FROM places").fetchone()[0]
    except sqlite3.OperationalError:  # it was killed before there was a table
        return 0
    finally:
        sql.close()


def without_times(row):
    return {name: value for name, value in row.items() if name not in TIMES}


MEASURED = {"speed": speed, "memory": memory, "kills": kills}


if __name__ == "__main__":
    main()
