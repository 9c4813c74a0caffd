"""What a command says on the terminal: text that cannot command it, one-line errors, and output that fails."""

import contextlib
import os
import sys

from tqdm import tqdm

from safeqwen.showing.terminal import printable


def prepare_streams():
    """Returns whether there is a stdout (`bool`), which may have been closed; it and stderr then take any text."""
    if sys.stderr is None:  # print would write to stdout instead
        sys.stderr = open(os.devnull, "w")
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.reconfigure(errors="replace")
    return sys.stdout is not None


def say(reason):
    """Prints an error to stderr, as one line of this command's."""
    with contextlib.suppress(OSError):  # there is nowhere else to say it
        print(f"safeqwen: {printable(' '.join(str(reason).split()))}", file=sys.stderr, flush=True)


def drop_output():
    """Sends what is left of stdout nowhere: Python would try to write it once more on its way out, and complain."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def progress_bar(*args, **kwargs):
    """Returns a `tqdm` bar on stderr, as wide as the terminal, or 80 columns where that says 0, as containers may."""
    try:
        size = os.get_terminal_size(sys.stderr.fileno())
    except OSError:  # stderr is no terminal
        size = ()
    width = {"dynamic_ncols": True} if all(size) else {"ncols": 79, "nrows": 24}  # tqdm leaves the last column free
    return tqdm(*args, file=sys.stderr, **width, **kwargs)
