"""The arguments of `safeqwen scan`."""

from pathlib import Path

from safeqwen_cli.arguments import add_command, add_fetching, add_max_pixels, add_model_arguments, natural, positive


DESCRIPTION = """\
Judge all pictures of a collection: one row for each, in a file that appears when all are through.

A SOURCE is a folder, a glob in quotes, a picture, a URL, a list (.txt: a path or URL a line), a .jsonl or a .parquet
with a column "image" or "images", a .tar (a WebDataset shard, too), a .zip, or a folder that Dataset.save_to_disk
wrote. Tar, zip and Parquet files in a folder are opened.

What is done is kept beside the rows, in ROWS.ledger. Stopped or killed at any moment, the same command goes on. After
the end it looks at what is new, has changed or failed, and writes the rows anew. The same picture is judged once;
near-identical ones are grouped, and groups whose verdicts disagree are shown. docs/scanning.md says more.
"""
EXIT_CODES = """\
exit codes: 0 every row has a verdict; 1 some are errors, which the rows and stdout tell (the others are judged all the
same); 2 refused, or a full disk: the reason is on stderr, and what was finished is kept; 130 stopped by Ctrl-C.
"""


def add_parser(commands):
    scan = add_command(
        commands,
        "scan",
        help="judge a collection of pictures, and go on where it stopped",
        description=DESCRIPTION,
        epilog=EXIT_CODES,
    )
    scan.add_argument("sources", nargs="+", metavar="SOURCE", help="where the pictures are")
    scan.add_argument(
        "--out", type=Path, metavar="OUT", help="rows: a file ending in .jsonl or .parquet, or a folder for rows.jsonl"
    )
    scan.add_argument("--upload", metavar="URI", help="copy the rows there at the end, e.g. s3://bucket/rows.parquet")
    scan.add_argument("--sample", type=positive, metavar="N", help="judge N of them, say what all would show and cost")
    scan.add_argument(
        "--policy",
        metavar="FILE",
        help="decide by this policy; none for no decision (default: safety_policy.json in the model's folder, if any)",
    )
    scan.add_argument("--reuse", metavar="ROWS", help="take over the verdicts of another scan, e.g. of another policy")
    scan.add_argument("--column", metavar="NAME", help='that holds the pictures (default: "image", else "images")')
    scan.add_argument("--quiet", action="store_true", help="no progress on stderr")

    add_model_arguments(scan)

    limits = scan.add_argument_group("limits")
    add_max_pixels(limits)
    limits.add_argument(
        "--batch-size", type=positive, metavar="N", default=16, help="pictures a forward (default: %(default)s)"
    )
    limits.add_argument(
        "--num-workers",
        type=natural,
        metavar="N",
        default=4,
        help="threads that read, and as many that decode (default: %(default)s)",
    )
    add_fetching(limits)

    machines = scan.add_argument_group("several machines")
    machines.add_argument(
        "--engine", choices=("local", "ray"), default="local", help="who judges: this process, or actors of Ray Data"
    )
    machines.add_argument(
        "--address",
        metavar="HOST:PORT",
        help="Ray's cluster (default: $RAY_ADDRESS, else the one that runs here, else Ray is started here)",
    )
    machines.add_argument(
        "--num-actors",
        type=positive,
        metavar="N",
        help="actors, each with a model and a GPU, or a core (default and most: one for each that the cluster has)",
    )
