"""The command `safeqwen`: a module for the arguments of each command, whose work is done in safeqwen/commands.

This package stands beside `safeqwen`, because importing anything inside of that loads torch and transformers, for
which `safeqwen --help` need not wait. It imports nothing but the standard library.
"""

import importlib
import sys

from safeqwen_cli import calibrate, check, compare, demo, evaluate, explain, export, judge, report, scan, train
from safeqwen_cli.arguments import Parser


__version__ = "0.1.0"  # of the package, too

# As --help lists them.
COMMANDS = (judge, explain, demo, scan, report, train, export, check, calibrate, evaluate, compare)


def build_parser():
    parser = Parser(prog="safeqwen", description="Qwen2.5-VL with a guard that judges the pictures.")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add_parser(commands)
    return parser


def main(argv=None):
    """Runs the command line `argv` (by default the process's own) and returns its exit code."""
    args = build_parser().parse_args(argv)
    args.arguments = sys.argv[1:] if argv is None else list(argv)
    return importlib.import_module(args.module).run(args)
