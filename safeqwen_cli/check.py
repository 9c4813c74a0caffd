"""The arguments of `safeqwen check`."""

from safeqwen_cli.arguments import add_command


DESCRIPTION = """\
Try a published folder as a stranger would: load it by every Auto class of the installed transformers, judge a picture,
answer a question; and compare logits and verdict with those of the run that it was made of.

One line a check on stdout, "ok" or "FAILED" with the reason and what to do. The folder's code is run only if it is
this package's own. Weights are loaded in float32, one model at a time: four bytes a parameter.
"""
EXIT_CODES = "exit codes: 0 all checks passed; 1 one failed; 2 wrong usage."


def add_parser(commands):
    check = add_command(
        commands,
        "check",
        help="try a published folder: load, judge, answer, compare",
        description=DESCRIPTION,
        epilog=EXIT_CODES,
    )
    check.add_argument("folder", metavar="OUT", help="the folder that safeqwen export wrote")
    check.add_argument("--run", dest="run_folder", metavar="RUN", help="compare with this run, unmerged")
    check.add_argument("--image", metavar="FILE", help="judge this picture (default: a drawn house)")
    check.add_argument("--device", default="cpu", help="e.g. cuda:1 (default: %(default)s)")
