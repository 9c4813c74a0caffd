"""Drawings for the demo checkpoint: one image per category and seed, drawn with Pillow alone.

For each harm a family of symbolic pictograms (a noose, a barred cross, an ID card), for "safe" harmless everyday
things. The seed picks pictogram, colours, size, place, rotation, line style and background. A pictogram is a list of
shapes (`pen.py`); a line style says how such a list becomes ink (`ink.py`). One line style and one background are held
out: training never sees them, and the demo's figures say how well it does on them.

    >>> from tools.demo.pictograms import draw, subject
    >>> draw("safe", seed=7).size, subject("safe", seed=7)
    ((224, 224), 'kite')
"""

import math
import random

from PIL import Image, ImageDraw

from safeqwen import CATEGORIES
from tools.demo import harmless, hate_crime_privacy, violence_sex_advice
from tools.demo.ink import paint_background, paint_shape, palette
from tools.demo.pen import Pen


LINE_STYLES = ("outline", "solid", "bold", "flat", "dashed")
HELD_OUT_LINE_STYLE = "sketch"
BACKGROUNDS = ("plain", "gradient", "stripes", "dots", "blotches")
HELD_OUT_BACKGROUND = "grid"
RULED_BACKGROUND = "ruled"  # to learn from alone: parallel thin lines
THINNESS, MAX_STROKES = (0.35, 1.1), 3  # of lines drawn by hand: a share of the usual width, and how often each
FIRST_HELD_OUT_SEED = 1_000_000  # training draws from the seeds below

_FAMILIES = harmless.PICTOGRAMS | hate_crime_privacy.PICTOGRAMS | violence_sex_advice.PICTOGRAMS
PICTOGRAMS = {category.name: _FAMILIES[category.name] for category in CATEGORIES}
"""Category name -> {subject: function that puts the shapes on a `Pen`}, in the order a seed chooses from."""


def subject(category, seed, pictograms=PICTOGRAMS):
    """Returns the words for what `draw` shows for the same arguments, such as "house" or "a barred cross".

    Raises:
        ValueError: if category has no pictograms.
    """
    return _choose(category, seed, pictograms)[0]


def _choose(category, seed, pictograms):
    if category not in pictograms:
        raise ValueError(f"there are no pictograms for {category!r}; expected one of {', '.join(pictograms)}")
    rng = random.Random(f"{category}-{seed}")
    return rng.choice(list(pictograms[category])), rng


def draw(category, seed, size=224, line_style=None, background=None, pictograms=PICTOGRAMS, by_hand=False):
    """Returns the drawing that a seed stands for, an RGB `PIL.Image` of size x size pixels.

    Args:
        category (`str`): a name in pictograms.
        seed (`int`): chooses everything; the same category, seed and size give the same drawing.
        size (`int`): side in pixels.
        line_style (`str`, *optional*): one of `LINE_STYLES` or `HELD_OUT_LINE_STYLE`. The seed chooses among
            `LINE_STYLES` when it is None.
        background (`str`, *optional*): one of `BACKGROUNDS`, `RULED_BACKGROUND` or `HELD_OUT_BACKGROUND`. The seed
            chooses among `BACKGROUNDS` when it is None.
        pictograms (`dict`, *optional*): another taxonomy's, of the form of `PICTOGRAMS`.
        by_hand (`bool`): whether lines may be thinner than usual, and thin ones drawn up to three times, each time
            a little elsewhere; to learn from, so that what is seen does not hang on how a line is drawn.

    Raises:
        ValueError: if category, line_style or background is none of these.
    """
    name, rng = _choose(category, seed, pictograms)
    chosen_style, chosen_background = rng.choice(LINE_STYLES), rng.choice(BACKGROUNDS)
    line_style, background = line_style or chosen_style, background or chosen_background
    if line_style not in (*LINE_STYLES, HELD_OUT_LINE_STYLE):
        raise ValueError(f"no line style {line_style!r}; expected one of {(*LINE_STYLES, HELD_OUT_LINE_STYLE)}")
    if background not in (known := (*BACKGROUNDS, RULED_BACKGROUND, HELD_OUT_BACKGROUND)):
        raise ValueError(f"no background {background!r}; expected one of {known}")

    colours = palette(rng)
    side = 2 * size  # drawn twice as large and reduced: Pillow's lines are not antialiased
    pictogram = Placed(pictograms[category][name], side, rng)
    canvas = Image.new("RGB", (side, side), colours["ground"])
    paint_background(canvas, background, colours["ground"], rng)
    pictogram.paint(canvas, line_style, colours, rng, by_hand=by_hand)
    return canvas.reduce(2)


class Placed:
    """A pictogram that has its size, turn and place within a square of `side` pixels, wholly inside."""

    def __init__(self, pictogram, side, rng):
        pen = Pen()
        pictogram(pen)
        self.shapes = pen.shapes
        reach = side * rng.uniform(0.38, 0.48)  # half the drawing's extent
        stretch, turn = rng.uniform(0.85, 1), math.radians(rng.uniform(-12, 12))
        c, s = math.cos(turn), math.sin(turn)
        turned = [
            [(x * stretch * c - y * s, x * stretch * s + y * c) for x, y in shape.points] for shape in pen.shapes
        ]
        xs, ys = zip(*[point for points in turned for point in points])
        self.reach = reach = min(reach, 0.47 * side / max((max(xs) - min(xs)) / 2, (max(ys) - min(ys)) / 2))
        x0, y0 = [rng.uniform(0.03 * side - reach * min(axis), 0.97 * side - reach * max(axis)) for axis in (xs, ys)]
        self.points = [[(x0 + reach * x, y0 + reach * y) for x, y in points] for points in turned]

    def paint(self, canvas, line_style, colours, rng, corner=(0, 0), by_hand=False):
        """Inks it, the square's upper left corner at `corner` (pixels) of the canvas; `by_hand` as `draw` has it."""
        brush, (left, top) = ImageDraw.Draw(canvas), corner
        unit = self.reach * rng.uniform(0.045, 0.07)
        thinness = rng.uniform(*THINNESS) if by_hand else 1.0
        num_strokes = rng.randint(1, MAX_STROKES) if thinness < 0.8 else 1
        for shape, points in zip(self.shapes, self.points):
            points = [(left + x, top + y) for x, y in points]
            paint_shape(brush, shape, points, line_style, colours, unit, rng, thinness, num_strokes)
