"""A verdict on a terminal: the picture beside bars, in the colours that the terminal has.

Nothing here asks the terminal a question: over a slow line or in a multiplexer the answer would come late, and stand
in the next prompt. What a terminal can is known by its environment and its size in pixels. Everywhere else the picture
is drawn in half blocks, two pixels a character, which takes nothing but colours.
"""

import importlib
import os
import struct
import sys
from contextlib import contextmanager

from safeqwen.showing.bars import bar_rows, is_of_another_view
from safeqwen.showing.notebook import blurred as blurred_copy


PICTURE = (24, 12)  # columns and rows of the terminal, at most
BESIDE_FROM = 70  # columns; on a narrower terminal the picture stands above the bars
BAR, NARROWEST_BAR = 30, 5  # columns of a probability of 1, at most and at least
EIGHTHS = " ▏▎▍▌▋▊▉"


def printable(text, kept=""):
    """Returns text that cannot command the terminal, nor look like rows of ours: control characters are replaced."""
    return "".join(c if c.isprintable() or c in kept else "\N{REPLACEMENT CHARACTER}" for c in text)


def terminal():
    """Returns rich's `Console` of stdout, or `None` if that is no terminal that takes more than lines of text.

    rich decides, and heeds NO_COLOR, FORCE_COLOR (colours, though stdout is no terminal) and TERM=dumb.
    """
    if not (sys.stdout.isatty() or os.environ.get("FORCE_COLOR")):
        return None  # without loading rich
    from rich.console import Console

    console = Console(file=sys.stdout, highlight=False, markup=False, emoji=False)
    return console if console.is_terminal and not console.is_dumb_terminal else None


def show_verdict(console, verdict, *, unsafe_at, top=None, picture=True, blurred=False):
    """
    Prints a verdict: the name, bars with the thresholds marked, the decision, and the picture where it can be drawn.

    Args:
        console: as `terminal` returns it.
        verdict ([`Verdict`]): without an error.
        unsafe_at, top: as `bar_rows` takes them.
        picture (`bool`): whether to draw the picture.
        blurred (`bool`): whether to make it unrecognisable.
    """
    from rich.table import Table
    from rich.text import Text

    title = Text(printable(verdict.name), style="bold")
    if len(verdict.frames) > 1:
        title.append(f"  (the least safe of {len(verdict.frames)} views)", style="not bold dim")
    drawn = _picture(console, verdict.thumbnail, blurred) if picture and verdict.thumbnail is not None else None
    if drawn is not None and blurred:
        title.append("  (blurred: --show-flagged)", style="not bold dim")
    console.print(title)
    is_beside = drawn is not None and console.width >= BESIDE_FROM
    details = _details(console, verdict, bar_rows(verdict, top, unsafe_at), PICTURE[0] + 2 if is_beside else 0)
    if is_beside:
        grid = Table.grid(padding=(0, 2, 0, 0))
        grid.add_column(width=PICTURE[0])
        grid.add_column()
        grid.add_row(drawn, details)
        console.print(grid)
    else:
        if drawn is not None:
            console.print(drawn)
        console.print(details)
    console.print()


def _details(console, verdict, rows, columns_taken):
    """The bars as a table, and the decision below it."""
    from rich.cells import cell_len
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    names = max(cell_len(row.title) for row in rows)
    others = max(len(row.percent) for row in rows) + max(len(_rule(row)) for row in rows) + 6  # spaces between columns
    width = min(BAR, console.width - columns_taken - names - others)
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column()
    table.add_column(justify="right")
    for row in rows:
        style = _style(row)
        bar = [_bar(row, width, style, console.options.ascii_only)] if width >= NARROWEST_BAR else []
        title, percent = Text(printable(row.title), style=style), Text(row.percent, style=style)
        table.add_row(title, percent, *bar, Text(_rule(row), style="dim"))
    lines = [table]
    if is_of_another_view(verdict):
        lines.append(Text("The probabilities are those of another view, by which the policy decided.", style="dim"))
    if verdict.decision is not None:
        action = verdict.decision.would_action
        colour = {"allow": "green", "flag": "yellow", "block": "red"}[action]
        lines.append(Text(printable(verdict.decision.in_words()), style=f"bold {colour}"))
    return Group(*lines)


def _rule(row):
    return "" if row.threshold is None else f"from {row.bound}"


def _style(row):
    if row.fires:
        return "red"
    return "green" if row.name in ("safe", "unsafe") else ""  # a harm below its threshold is not green


def _bar(row, width, style, ascii_only):
    """A bar of `width` columns at most, with the threshold marked in it or beyond it."""
    from rich.text import Text

    if ascii_only:
        cells = "#" * round(row.probability * width)
    else:
        full, eighths = divmod(round(row.probability * width * 8), 8)
        cells = "█" * full + EIGHTHS[eighths].strip()
    if row.threshold is None:
        return Text(cells, style=style)
    at = min(int(row.threshold * width), width - 1)
    cells = cells.ljust(at + 1)
    text = Text(cells[:at], style=style)
    text.append("|" if ascii_only else "│", style=f"bold reverse {style}" if cells[at] == "█" else "bold")
    return text.append(cells[at + 1 :], style=style)


def _picture(console, image, blurred):
    """What draws a picture on this terminal; `None` if it has too few colours or letters."""
    if console.no_color or console.color_system not in ("256", "truecolor") or console.options.ascii_only:
        return None
    if not sys.stdout.isatty():  # FORCE_COLOR asks for colours, not for pictures in a log
        return None
    if blurred:
        image = blurred_copy(image)
    columns, rows = min(PICTURE[0], console.width), PICTURE[1]
    cell, draw = _cell_size(), _graphics(os.environ)
    if cell is None or draw is None:
        return _half_blocks(image, columns, rows)
    width, height = _fitted(image.size, columns * cell[0], rows * cell[1])
    return draw(image, width=max(1, round(width / cell[0])), height=max(1, round(height / cell[1])))


def _fitted(size, width, height):
    """The largest (width, height) of the same shape within bounds, 1 x 1 at least."""
    scale = min(width / size[0], height / size[1])
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _half_blocks(image, columns, rows):
    from rich.color import Color
    from rich.style import Style
    from rich.text import Text

    width, height = _fitted(image.size, columns, 2 * rows)
    height += height % 2
    pixels = image.convert("RGB").resize((width, height)).load()
    lines = []
    for y in range(0, height, 2):
        line = Text(no_wrap=True, overflow="crop")
        for x in range(width):
            upper, lower = (Color.from_rgb(*pixels[x, row]) for row in (y, y + 1))
            line.append("▀", Style(color=upper, bgcolor=lower))
        lines.append(line)
    return Text("\n", no_wrap=True, overflow="crop").join(lines)


def _graphics(environ):
    """textual-image's class for the protocol in which this terminal shows pictures, or `None`."""
    term = environ.get("TERM", "")
    if any(environ.get(name) for name in ("TMUX", "STY", "ZELLIJ")) or term.startswith(("tmux", "screen")):
        return None  # they hand on neither protocol, unless they are told to
    if term in ("xterm-kitty", "xterm-ghostty"):
        protocol = "tgp"
    elif (
        term.startswith(("foot", "mlterm", "contour"))
        or environ.get("TERM_PROGRAM") in ("iTerm.app", "WezTerm")
        or environ.get("KONSOLE_VERSION", "") >= "220400"
    ):
        protocol = "sixel"
    else:
        return None
    try:
        with _without_stdout():
            return importlib.import_module(f"textual_image.renderable.{protocol}").Image
    except ModuleNotFoundError as error:
        if error.name.split(".")[0] != "textual_image":
            raise
        return None  # it is an extra


@contextmanager
def _without_stdout():
    """textual-image asks the terminal what it can when it is imported, if there is one: see above."""
    stdout, sys.__stdout__ = sys.__stdout__, None
    try:
        yield
    finally:
        sys.__stdout__ = stdout


def _cell_size():
    """(width, height) of a character in pixels, or `None` if the terminal does not say."""
    try:
        import fcntl
        import termios

        answer = fcntl.ioctl(sys.stdout.fileno(), termios.TIOCGWINSZ, bytes(8))
    except (ImportError, OSError):  # ImportError: on Windows
        return None
    rows, columns, width, height = struct.unpack("HHHH", answer)
    return (width // columns, height // rows) if min(rows, columns) and width >= columns and height >= rows else None
