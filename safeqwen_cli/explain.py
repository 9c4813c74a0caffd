"""The arguments of `safeqwen explain`."""

import argparse

from safeqwen_cli.arguments import add_command, add_fetching, add_max_pixels, add_model_arguments


DESCRIPTION = """\
Show where the verdict on a picture comes from: a heat map over it for each category.

Without --category it is the harms above 10 %, three at most, the likeliest first; or "safe", if there is no harm above
10 %. A map says what each patch of 28 x 28 pixels adds to the log-odds of the category against "safe" (and for "safe"
against all others), counted from an evenly grey picture. Yellow adds most; where nothing is painted nothing speaks for
the category more than elsewhere. Of an animation, or a picture that looks different on white and on black paper, it is
the view that decided, the least safe one.

A map is no proof, and says nothing about a picture that was made to mislead: read docs/heatmaps.md first. It takes one
forward and one backward a category, and memory for what the backward needs: 23 MB a token of the 7B model in bfloat16.
"""
EXIT_CODES = """\
exit codes: 0 the maps were made; 1 the picture could not be read or judged, or does not fit into memory, or the reader
of stdout has left; 2 wrong usage, a file that exists or cannot be written, the model could not be loaded, or it can
give no maps. The reason is on stderr.

--json prints one object:
  image     (string) as given
  label     (string) the likeliest category of the view that decided
  scores    (object) the probability of each category in that view
  frame     (number) which frame the view shows, from 0
  views     (number) how many views were judged
  maps      (array) of objects: category, probability, file (string or null), and values: an array of rows, each an
            array of numbers in natural units: +1 makes the odds 2.7 times as high
  model     (string) as given, or "demo"
Later versions may add fields, and will not change these.
"""


def png(text):
    if not text.lower().endswith(".png"):
        raise argparse.ArgumentTypeError(f"expected a name that ends in .png, got {text!r}")
    return text


def add_parser(commands):
    explain = add_command(
        commands,
        "explain",
        help="show where the verdict on a picture comes from",
        description=DESCRIPTION,
        epilog=EXIT_CODES,
    )
    explain.add_argument("image", metavar="IMAGE", help="a picture file or an http(s) URL")
    explain.add_argument(
        "--category", action="append", metavar="NAME", help="explain this one; may be given several times"
    )

    output = explain.add_argument_group("output (--out, --json or both)")
    output.add_argument(
        "--out", type=png, metavar="PNG", help="the overlay; of several categories NAME.png becomes NAME-CATEGORY.png"
    )
    output.add_argument("--force", action="store_true", help="replace files that exist")
    output.add_argument("--json", action="store_true", help="the maps' values, as documented below")

    add_model_arguments(explain)

    limits = explain.add_argument_group("limits")
    add_max_pixels(limits)
    add_fetching(limits)
