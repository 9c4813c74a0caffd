"""From a picture's bytes to the verdict on the page, against reading, preparing and guard() alone: medians, in turns.

    python -m benchmarks.browser [--model PATH] [--rounds N]

Both in one process, on one picture, one after the other; the page's part is the handler's up to what it yields, the
HTML of the verdict. The last line is a JSON object, in milliseconds.
"""

import argparse
import json
import statistics
import time

import safeqwen
from safeqwen.browser.page import example_bytes, verdicts_html
from safeqwen.browser.visit import Judge


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="(default: the demo checkpoint)")
    parser.add_argument("--rounds", type=int, default=60)
    args = parser.parse_args(argv)
    judge = Judge(*safeqwen.load(args.model))
    engine, data = judge.pipeline.engine, example_bytes("weapon_related_violence")

    def guard():
        engine.judge(engine.prepare(safeqwen.read_bytes(data)))

    def page():
        verdicts_html([judge.verdict(data, "picture.png")])

    seconds = {"guard": [], "page": []}
    for _ in range(args.rounds + 5):
        for name, call in (("guard", guard), ("page", page)):
            started = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - started)
    medians = {name: 1000 * statistics.median(times[5:]) for name, times in seconds.items()}
    print(json.dumps({**medians, "ratio": medians["page"] / medians["guard"]}))


if __name__ == "__main__":
    main()
