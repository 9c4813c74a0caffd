"""
What a verdict costs, as ratios that anyone can reproduce.

    python -m benchmarks --suite cpu --out benchmarks/results.json --readme docs/benchmarks.md

Writes the results as JSON after each figure, and at the end the same in Markdown beside it and how cost grows as a
PNG (needs matplotlib: `pip install ".[bench]"`). It takes a quarter of an hour on two cores.
"""

import argparse
import datetime
import importlib
import importlib.util
import json
import os
import shlex
import sys
import time
from pathlib import Path


def main(argv=None):
    """Runs a suite and returns 0, or 1 if a figure missed its bar."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--suite", choices=("cpu", "gpu"), required=True)
    parser.add_argument("--out", type=Path, required=True, help="results.json; .md and .png are written beside it")
    parser.add_argument("--dry", action="store_true", help="at a tiny shape on a CPU: that it runs, not how fast")
    parser.add_argument("--only", nargs="+", metavar="FIGURE", help="these alone, e.g. forward guard growth")
    parser.add_argument("--readme", type=Path, help="put the tables into this file, between its marks")
    args = parser.parse_args(argv)
    if importlib.util.find_spec("matplotlib") is None and not args.dry:
        parser.error('matplotlib is missing: pip install ".[bench]"')

    os.environ["HF_HUB_OFFLINE"] = "1"
    import torch

    from benchmarks import report
    from benchmarks.measure import describe_machine

    suite = importlib.import_module(f"benchmarks.{args.suite}")
    if unknown := set(args.only or ()) - {*suite.KEYS}:
        parser.error(f"--only {' '.join(sorted(unknown))}: the figures of this suite are {' '.join(suite.KEYS)}")
    if args.readme and (args.only or args.dry):
        parser.error("--readme shows a whole run: leave out --only and --dry")
    if args.suite == "gpu" and not args.dry and not torch.cuda.is_available():
        parser.error("--suite gpu needs a GPU that torch can use; --dry tries it out on a CPU")

    def wanted(key):
        if args.only and key not in args.only:
            return False
        print(f"{(time.monotonic() - start) / 60:5.1f} min  {key}", file=sys.stderr)
        return True

    command = shlex.join(["python", "-m", "benchmarks", *(sys.argv[1:] if argv is None else map(str, argv))])
    results = {"suite": args.suite, "command": command, "dry": args.dry, "date": str(datetime.date.today())}
    results["machine"] = describe_machine()  # before it is busy with this
    results |= {"figures": [], "growth": None, "throughput": []}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    for name, part in suite.run(wanted, args.dry):
        if name == "growth":
            results["growth"] = part
        else:
            results[name] += part
        if args.dry and name == "figures":
            for row in part:
                row["met"] = None
                row.pop("parts", None)
        results["minutes"] = (time.monotonic() - start) / 60
        # At once: the time on a card that was lent may end before the suite does.
        args.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    text = report.markdown(results)
    args.out.with_suffix(".md").write_text(text, encoding="utf-8")
    if results["growth"] and importlib.util.find_spec("matplotlib") is not None:
        from benchmarks.curves import plot_growth

        plot_growth(results["growth"], args.out.with_suffix(".png"))
    if args.readme:
        report.put_into_readme(text, args.readme)
    print(text)
    return int(any(row["met"] is False for row in results["figures"]))


if __name__ == "__main__":
    sys.exit(main())
