"""The arguments of `safeqwen compare`."""

from pathlib import Path

from safeqwen_cli.arguments import add_command


DESCRIPTION = """\
Compare evaluations of one benchmark with the first of them: figures side by side, and by how much they differ.

Only rows that all of them have count. Every interval holds 95 % of the resamples of the pictures, and a difference is
measured on the same resampled pictures on both sides. Pictures are flagged by the policy that safeqwen evaluate was
given, or without one from an unsafe probability of 0.5. The rows on which the decisions differ are listed, all of them
in --out.
"""
EXIT_CODES = """\
exit codes: 0 they were compared; 1 FILE or stdout could not be written; 2 wrong usage, or evaluations that cannot be
compared, such as of different benchmarks, or with different pictures or labels under one id. The reason is on stderr.
"""


def add_parser(commands):
    compare = add_command(
        commands,
        "compare",
        help="compare evaluations: what differs, how surely, where",
        description=DESCRIPTION,
        epilog=EXIT_CODES,
    )
    compare.add_argument("folders", nargs="+", metavar="DIR", help="folders that safeqwen evaluate wrote, two or more")
    compare.add_argument(
        "--out", metavar="FILE", type=Path, help="write all of it as JSON, with every row that differs"
    )
