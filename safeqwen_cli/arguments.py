"""How the arguments of the commands are parsed: the parser, and the types of values that several of them take."""

import argparse
import math


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, with the place to read on, and not the whole usage."""

    def parse_known_args(self, args=None, namespace=None):
        namespace, unknown = super().parse_known_args(args, namespace)
        if unknown:  # said by the command, whose help lists those that there are
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return namespace, unknown

    def error(self, message):
        line = f"{self.prog}: {message}; see {self.prog} --help"
        self.exit(2, "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in line) + "\n")


def add_command(commands, name, **texts):
    """Returns a new parser for the command that `run(args)` of safeqwen/commands/`name`.py carries out.

    Args:
        commands: what `add_subparsers` of argparse returns.
        texts: `help`, `description` and `epilog`, as argparse takes them, in lines of at most 119 characters.
    """
    parser = commands.add_parser(name, formatter_class=argparse.RawDescriptionHelpFormatter, **texts)
    parser.set_defaults(module=f"safeqwen.commands.{name}")
    return parser


def add_model_arguments(parser):
    """Adds the group of arguments that `load_model` of safeqwen/commands/model.py takes."""
    model = parser.add_argument_group("model")
    model.add_argument("--model", metavar="PATH", help="folder or Hub repository (default: demo, drawings only)")
    model.add_argument("--revision", help="branch, tag or commit of the repository")
    model.add_argument("--token", help="for a private repository (default: the one of `hf auth login`)")
    model.add_argument("--cache-dir", metavar="DIR", help="where downloads are kept")
    model.add_argument("--local-files-only", action="store_true", help="download nothing")
    model.add_argument("--device", help="e.g. cpu, cuda:1 (default: an accelerator if there is one)")
    model.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="(default: float32 on a CPU)")


def add_max_pixels(group):
    """Adds the bound on a picture's pixels."""
    group.add_argument(
        "--max-pixels",
        type=positive,
        metavar="N",
        help="shrink larger pictures to N pixels, 784 a token (default: the processor's own, for Qwen2.5-VL 12845056)",
    )


def add_fetching(group):
    """Adds what `read_image` takes for URLs."""
    group.add_argument(
        "--timeout", type=seconds, metavar="SECONDS", default=10.0, help="for one URL (default: %(default)s)"
    )
    group.add_argument(
        "--private-networks", action="store_true", help="fetch URLs of private, link-local and loopback addresses, too"
    )


def probability(text):
    return _number(float, text, lambda value: 0 <= value <= 1, "a probability in [0, 1]")


def share(text):
    return _number(float, text, lambda value: 0 < value < 1, "a number between 0 and 1")


def seconds(text):
    return _number(float, text, lambda value: 0 < value < math.inf, "a finite number of seconds above 0")


def positive(text):
    return _number(int, text, lambda value: value >= 1, "a whole number, 1 or more")


def natural(text):
    return _number(int, text, lambda value: value >= 0, "a whole number, 0 or more")


def resamples(text):
    return _number(int, text, lambda value: value >= 100, "100 or more, for intervals of 95 %")


def words(text):
    try:
        text.encode()
    except UnicodeEncodeError:  # Python hands bytes that are no UTF-8 on as lone surrogates
        raise argparse.ArgumentTypeError("expected text in UTF-8; check the terminal's locale") from None
    return text


def _number(kind, text, is_in_range, expected):
    try:
        value = kind(text)
    except ValueError:
        value = math.nan
    if not is_in_range(value):  # NaN never is
        raise argparse.ArgumentTypeError(f"expected {expected}, got {text!r}")
    return value
