"""A plot as PNG files for a light and for a dark page."""

import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import matplotlib.style
from matplotlib.figure import Figure
from PIL import Image


SMALL = (4.8, 4.0)  # inches: at 400 pixels of a page its 10 points are still read
PIXELS_PER_INCH = 200

# Okabe and Ito's colours (jfly.uni-koeln.de/color), which people with any colour vision tell apart; lines and
# marks differ in their shape too.
THEMES = {
    "light": {"ground": "#ffffff", "ink": "#1b1f24", "faint": "#d3d8de", "first": "#0072b2", "second": "#d55e00"},
    "dark": {"ground": "#14171a", "ink": "#e7e9eb", "faint": "#3a4149", "first": "#56b4e9", "second": "#e69f00"},
}


@dataclass(frozen=True)
class Plot:
    """
    One plot.

    Args:
        name (`str`): of its files, `NAME-light.png` and `NAME-dark.png`.
        title (`str`): with N.
        description (`str`): what a reader who does not see it should know.
        draw (`Callable`, *optional*): `draw(figure, theme)` puts it on a `matplotlib.figure.Figure`.
        reason (`str`, *optional*): why it cannot be drawn.
        inches (`tuple[float, float]`): width and height.
    """

    name: str
    title: str
    description: str = ""
    draw: Callable | None = None
    reason: str | None = None
    inches: tuple = SMALL

    def figure(self, theme):
        """The drawn `matplotlib.figure.Figure`, for a theme of `THEMES`."""
        with matplotlib.style.context(["default", _style(THEMES[theme])]):
            figure = Figure(figsize=self.inches, layout="constrained")
            self.draw(figure, THEMES[theme])
            figure.suptitle(self.title, x=0.01, ha="left", fontsize=10, fontweight="bold")
        return figure

    @cached_property
    def pngs(self):
        """Theme of `THEMES` -> the `bytes` of its PNG file, drawn once: the files and the page show the same."""
        return {theme: self._png(theme) for theme in THEMES}

    def _png(self, theme):
        drawn, file = io.BytesIO(), io.BytesIO()
        with matplotlib.style.context(["default", _style(THEMES[theme])]):
            self.figure(theme).savefig(drawn, format="png", dpi=PIXELS_PER_INCH)
        # 128 colours are enough for a plot, in a third of the bytes.
        Image.open(drawn).convert("RGB").quantize(128, dither=Image.Dither.NONE).save(file, "PNG", optimize=True)
        return file.getvalue()


def count_axis(axes, highest):
    """
    Linear up to 10, then by powers of ten: a good guard's scores lie at the ends, and its few mistakes between. The
    highest count has a tick of its own, and the others keep away from it and from one another: the axes are small.
    """
    highest = max(1, int(highest))
    powers = [10**power for power in range(1, 8) if 5 * 10**power <= highest]
    ticks = [0, *powers[:: -1 - (len(powers) > 2) - (len(powers) > 4)][::-1], highest]
    axes.set_yscale("symlog", linthresh=10)
    axes.set_ylim(0, 1.2 * highest)
    axes.set_yticks(ticks, [f"{tick:,}" for tick in ticks])
    axes.set_yticks([], minor=True)


def _style(theme):
    ink, ground = theme["ink"], theme["ground"]
    return {
        **dict.fromkeys(("figure.facecolor", "axes.facecolor", "savefig.facecolor"), ground),
        **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), ink),
        "grid.color": theme["faint"],
        "grid.linewidth": 0.6,
        "axes.axisbelow": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "font.size": 9,
        "legend.facecolor": ground,
        "legend.edgecolor": ground,
        "legend.framealpha": 0.85,
        "legend.fontsize": 8.5,
        "lines.linewidth": 1.8,
        "text.parse_math": False,  # a category may hold a dollar sign
    }
