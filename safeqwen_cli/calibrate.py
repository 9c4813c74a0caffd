"""The arguments of `safeqwen calibrate`."""

from safeqwen_cli.arguments import add_command, share


DESCRIPTION = """\
Fit a safety policy to labelled rows of evaluations: a temperature, the threshold of "unsafe", how many frames of a
clip must fire; and say what it does on rows that were held out.

One row a picture counts, and the pictures are split by their bytes. --max-fpr gives a threshold with a promise: with
probability --confidence or more over the draw of the rows, the false-positive rate on new still pictures of the same
kind is at most this. Without it the threshold is that of an operating point, which promises nothing:
  high_precision  the highest recall among the thresholds with a precision of at least 95 %, at the rows' own share of
                  unsafe pictures
  balanced        the largest difference of recall and false-positive rate (Youden's J)
  high_recall     the lowest false-positive rate among the thresholds with a recall of at least 95 %
docs/calibration.md says how to choose.
"""
EXIT_CODES = """\
exit codes: 0 the policy was written; 2 it was not: wrong usage, rows of several models, too few rows (how many are
needed), a guard that ranks backwards, or a file that exists. The reason is on stderr.
"""


def add_parser(commands):
    calibrate = add_command(
        commands,
        "calibrate",
        help="fit a safety policy to the rows of evaluations",
        description=DESCRIPTION,
        epilog=EXIT_CODES,
    )
    calibrate.add_argument("rows", nargs="+", metavar="ROWS", help="a folder of safeqwen evaluate, or a rows.jsonl")
    calibrate.add_argument("--out", required=True, metavar="FILE", help="e.g. safety_policy.json beside the weights")
    calibrate.add_argument("--force", action="store_true", help="replace FILE if it exists")
    calibrate.add_argument("--policy", metavar="FILE", help="keep this one's mode, actions, groups and severity")

    thresholds = calibrate.add_argument_group("thresholds")
    thresholds.add_argument(
        "--operating-point",
        choices=("high_precision", "balanced", "high_recall"),
        default="balanced",
        help="of the thresholds without a promise (default: %(default)s)",
    )
    thresholds.add_argument(
        "--max-fpr", type=share, metavar="RATE", help="promise this false-positive rate, e.g. 0.05, for unsafe"
    )
    thresholds.add_argument(
        "--confidence", type=share, metavar="P", default=0.9, help="of the promise (default: %(default)s)"
    )
    thresholds.add_argument(
        "--per-category",
        action="store_true",
        help="a threshold for each category with 20 pictures or more, by --operating-point, not below that of unsafe",
    )

    split = calibrate.add_argument_group("split")
    split.add_argument(
        "--held-out", type=share, metavar="SHARE", default=0.3, help="of the pictures (default: %(default)s)"
    )
    split.add_argument("--seed", type=int, default=0, help="of the split (default: %(default)s)")
