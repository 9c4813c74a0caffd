"""
Decoding speed: `read_image` against an older copy of itself, on 12 megapixels as JPEG, PNG and WebP.

    python -m benchmarks.pictures OLD.py [--rounds 9]

OLD.py is a file with a `read_image`: `git show REVISION:safeqwen/images.py > old.py` gives what was there before
`safeqwen/pictures`. Runs alternate in one process; the last line of output is one JSON object of medians in seconds
and of the ratios new / old.
"""

import argparse
import importlib.util
import io
import json
import statistics
import time

import numpy as np
from PIL import Image

from safeqwen.pictures import read_image


def picture(width=4000, height=3000):
    """A picture of soft shapes with a little noise, which compresses about as a photograph does."""
    rng = np.random.default_rng(0)
    soft = Image.fromarray(rng.integers(0, 256, (height // 50, width // 50, 3), dtype=np.uint8))
    noise = rng.integers(-4, 5, (height, width, 1))
    return Image.fromarray((np.asarray(soft.resize((width, height))) + noise).clip(0, 255).astype(np.uint8))


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", help="file with the older read_image")
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args(argv)
    spec = importlib.util.spec_from_file_location("older_images", args.old)
    spec.loader.exec_module(older := importlib.util.module_from_spec(spec))
    original, results = picture(), {}
    for format, options in (("JPEG", {"quality": 90}), ("PNG", {}), ("WEBP", {"quality": 90})):
        file = io.BytesIO()
        original.save(file, format, **options)
        seconds = {"new": [], "old": []}
        for _ in range(args.rounds + 1):
            for name, read in (("new", read_image), ("old", older.read_image)):
                start = time.perf_counter()
                read(file.getvalue())
                seconds[name].append(time.perf_counter() - start)
        new, old = seconds["new"][1:], seconds["old"][1:]  # the first round warms up
        ratio = statistics.median(a / b for a, b in zip(new, old))
        results[format] = {"new": statistics.median(new), "old": statistics.median(old), "ratio": ratio}
        print(f"{format:5} {len(file.getvalue()) / 2**20:5.1f} MB  new / old {ratio:.2f}")
    print(json.dumps(results))


if __name__ == "__main__":
    main()
