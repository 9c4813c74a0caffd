"""Draws a picture and runs the README's own usage code on it, with the demo checkpoint: what `make demo` calls.

    python scripts/demo.py [--category weapon_related_violence] [--seed N] [--folder build/demo]

The code is taken out of README.md and executed as it stands there, in the folder that holds the picture.
"""

import argparse
import os
import re
import sys
import time
from pathlib import Path


ROOT = Path(__file__).parents[1]
BROWSER = '.venv/bin/python -m pip install -e ".[demo]" && .venv/bin/safeqwen demo'


def usage_code(readme=ROOT / "README.md"):
    """The first Python block under the README's heading "Ask about it"."""
    usage = readme.read_text(encoding="utf-8").split("\n## Ask about it\n", 1)[1]
    return re.search(r"```python\n(.*?)```", usage, re.DOTALL).group(1)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--category", default="weapon_related_violence", help="what to draw (default: %(default)s)")
    parser.add_argument("--seed", type=int, help="of the drawing (default: the time, in seconds)")
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "demo", help="where the picture is written")
    args = parser.parse_args(argv)

    sys.path.insert(0, str(ROOT))  # tools/ is not installed
    from tools.demo.pictograms import draw

    # Training draws seeds below a million; the clock is past that since January 1970.
    seed = int(time.time()) if args.seed is None else args.seed
    args.folder.mkdir(parents=True, exist_ok=True)
    draw(args.category, seed, size=448).save(args.folder / "picture.png")
    print(f"Drew {args.category} (seed {seed}) to {args.folder / 'picture.png'}; running the README's code:\n")
    sys.stdout.flush()
    os.chdir(args.folder)
    exec(compile(usage_code(), "README.md", "exec"), {"__name__": "__main__"})
    print(f"\nThe same in a browser: {BROWSER}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
