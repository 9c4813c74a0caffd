"""The arguments of `safeqwen report`."""

from pathlib import Path

from safeqwen_cli.arguments import add_command, add_model_arguments, natural


DESCRIPTION = """\
Make one page of the rows of a scan: counts, scores with the thresholds, a gallery to filter and sort, groups of
near-identical pictures, errors, throughput. It opens from disk without a network, and pictures are blurred until asked
for. Wrong verdicts can be marked there, and saved as rows that safeqwen train reads.

Several files of rows must be of one model and policy. docs/reports.md says more.
"""
EXIT_CODES = """\
exit codes: 0 the page was written; 1 it could not be written; 2 refused: wrong usage, no rows, rows of several models
or policies, another model for the heat maps. The reason is on stderr.
"""


def add_parser(commands):
    report = add_command(
        commands,
        "report",
        help="make a page of the rows of a scan, to look through and correct",
        description=DESCRIPTION,
        epilog=EXIT_CODES,
    )
    report.add_argument(
        "rows", nargs="+", metavar="ROWS", help="what safeqwen scan wrote: .jsonl, .parquet or a folder"
    )
    report.add_argument("--out", required=True, type=Path, metavar="FILE", help="the page, ending in .html")
    report.add_argument(
        "--policy", metavar="FILE", help="the scan's, to draw its thresholds in (default: that of ROWS.ledger)"
    )

    pictures = report.add_argument_group("pictures")
    pictures.add_argument(
        "--pictures",
        type=natural,
        metavar="N",
        default=10_000,
        help="in the gallery, flagged ones first (default: 10000)",
    )
    pictures.add_argument(
        "--thumbnails",
        type=natural,
        metavar="N",
        default=2_000,
        help="with a small picture, 3 kB each (default: 2000)",
    )
    pictures.add_argument(
        "--data-root", metavar="DIR", default=".", help="where the scan was started, for its paths (default: here)"
    )
    pictures.add_argument("--fetch", action="store_true", help="fetch pictures that lie behind URLs, too")
    pictures.add_argument("--column", metavar="NAME", help="the scan's")
    pictures.add_argument(
        "--heatmaps",
        type=natural,
        metavar="N",
        default=0,
        help="compute for the N highest-scored flagged pictures where the verdict comes from, by the scan's --model",
    )
    pictures.add_argument("--quiet", action="store_true", help="no progress on stderr")
    add_model_arguments(report)
