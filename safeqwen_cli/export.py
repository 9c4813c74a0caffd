"""The arguments of `safeqwen export`."""

from safeqwen_cli.arguments import add_command


DESCRIPTION = """\
Write a finished training run as a folder that anyone can load: merged weights, code, processor, model card.

OUT appears as a whole or not at all, and names no folder of this machine. Then try it with safeqwen check.

To publish how good it is, and what to do about its verdicts, export twice: the second time with what was measured on
the first. Figures and policies of other weights are refused.

  safeqwen export RUN tried
  safeqwen evaluate --model tried --benchmark holisafe-bench --data BENCHMARK --out evaluation
  safeqwen export RUN OUT --evaluation evaluation
"""
EXIT_CODES = """\
exit codes: 0 OUT was written, and uploaded if --push was given; 1 it could not be written, or was written but not
uploaded; 2 wrong usage, or a run that cannot be exported. The reason is on stderr.
"""


def add_parser(commands):
    export = add_command(
        commands,
        "export",
        help="make a training run a folder that anyone can load",
        description=DESCRIPTION,
        epilog=EXIT_CODES,
    )
    export.add_argument("run_folder", metavar="RUN", help="the folder that safeqwen train wrote")
    export.add_argument("out", metavar="OUT", help="a folder that does not exist yet, or is empty")
    export.add_argument(
        "--dtype",
        choices=("float16", "bfloat16", "float32"),
        default="float16",
        help="of the weights (default: %(default)s)",
    )
    export.add_argument(
        "--max-shard-size", metavar="SIZE", default="5GB", help="of one weights file (default: %(default)s)"
    )
    export.add_argument(
        "--adapter-only",
        action="store_true",
        help="only what LoRA trained, guard included, to be loaded onto the base",
    )
    export.add_argument(
        "--evaluation",
        action="append",
        default=[],
        metavar="DIR",
        help="that safeqwen evaluate wrote about these weights, for the card; can be given several times",
    )
    export.add_argument("--policy", metavar="FILE", help="a safety_policy.json for these weights, written to OUT")

    hub = export.add_argument_group("Hub")
    hub.add_argument("--push", metavar="REPO", help="upload OUT to this repository, with the login of `hf auth login`")
    hub.add_argument("--private", action="store_true", help="if the repository is new, let nobody else see it")
