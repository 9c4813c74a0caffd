"""Drawings for the demo checkpoint: one image per category and seed, drawn with Pillow alone.

For each harm a family of symbolic pictograms (a noose, a barred cross, an ID card), for "safe" harmless everyday
things. The seed picks pictogram, colours, size, place, rotation, line style and background. A pictogram is a list of
shapes in unit coordinates (x to the right, y down, within [-1, 1]); a line style says how such a list becomes ink. One
line style and one background are held out: training never sees them, and the demo's figures say how it does on them.

    >>> from safeqwen.pictograms import draw, subject
    >>> draw("safe", seed=7).size, subject("safe", seed=7)
    ((224, 224), 'kite')
"""

import math
import random
from dataclasses import dataclass

from PIL import Image, ImageDraw

from safeqwen.data.taxonomy import CATEGORIES


LINE_STYLES = ("outline", "solid", "bold", "flat", "dashed")
HELD_OUT_LINE_STYLE = "sketch"
BACKGROUNDS = ("plain", "gradient", "stripes", "dots", "blotches")
HELD_OUT_BACKGROUND = "grid"
FIRST_HELD_OUT_SEED = 1_000_000  # training draws from the seeds below

PICTOGRAMS = {category.name: {} for category in CATEGORIES}
"""Category name -> {subject: function that puts the shapes on a `Pen`}, in the order a seed chooses from."""

# Strokes of the few characters the pictograms need, on a cell one wide and two high.
GLYPHS = {
    "1": [[(0.2, 0.4), (0.55, 0), (0.55, 2)]],
    "8": [
        [(0.5, 0.95), (0.1, 0.7), (0.1, 0.25), (0.5, 0), (0.9, 0.25), (0.9, 0.7), (0.5, 0.95)],
        [(0.5, 0.95), (0.02, 1.25), (0.02, 1.75), (0.5, 2), (0.98, 1.75), (0.98, 1.25), (0.5, 0.95)],
    ],
    "+": [[(0.5, 0.6), (0.5, 1.4)], [(0.1, 1), (0.9, 1)]],
    "X": [[(0.05, 0), (0.95, 2)], [(0.95, 0), (0.05, 2)]],
    "!": [[(0.5, 0), (0.5, 1.3)], [(0.5, 1.75), (0.5, 2)]],
    "#": [[(0.35, 0.3), (0.2, 1.7)], [(0.8, 0.3), (0.65, 1.7)], [(0, 0.75), (1, 0.75)], [(0, 1.3), (1, 1.3)]],
    "$": [
        [(0.95, 0.45), (0.7, 0.2), (0.3, 0.2), (0.05, 0.45), (0.05, 0.75), (0.3, 0.95), (0.7, 1.05), (0.95, 1.25),
         (0.95, 1.55), (0.7, 1.8), (0.3, 1.8), (0.05, 1.55)],
        [(0.5, -0.1), (0.5, 2.1)],
    ],
}  # fmt: skip


@dataclass
class Shape:
    points: list[tuple[float, float]]
    fill: str | None  # a role in the palette; None for an open line
    stroke: str  # the role that outlines a shape, or draws a line
    width: float  # of the stroke, as a multiple of the line style's own


class Pen:
    """The shapes of one pictogram, back to front. Fills are roles ("main", "second", "paper", "ink"), not colours."""

    def __init__(self):
        self.shapes: list[Shape] = []

    def polygon(self, points, fill="main", width=1.0):
        self.shapes.append(Shape([*points, points[0]], fill, "ink", width))

    def line(self, *points, width=1.0, stroke="ink"):
        self.shapes.append(Shape(list(points), None, stroke, width))

    def rectangle(self, left, top, right, bottom, fill="main", width=1.0):
        self.polygon([(left, top), (right, top), (right, bottom), (left, bottom)], fill, width)

    def ellipse(self, x, y, rx, ry=None, fill="main", width=1.0):
        self.polygon(_arc(x, y, rx, ry or rx, 0, 360)[:-1], fill, width)

    def arc(self, x, y, rx, start, end, ry=None, width=1.0, stroke="ink"):
        """Draws an open arc; degrees, clockwise from the x axis since y points down."""
        self.line(*_arc(x, y, rx, ry or rx, start, end), width=width, stroke=stroke)

    def pie(self, x, y, rx, start, end, ry=None, fill="main", width=1.0):
        self.polygon(_arc(x, y, rx, ry or rx, start, end), fill, width)

    def text(self, characters, x, y, height, width=1.0, stroke="ink"):
        """Draws characters of `GLYPHS` by strokes, centred on (x, y)."""
        unit = height / 2
        left = x - unit * (1.4 * len(characters) - 0.4) / 2
        for i, character in enumerate(characters):
            for glyph_stroke in GLYPHS[character]:
                points = [(left + unit * (gx + 1.4 * i), y - unit + unit * gy) for gx, gy in glyph_stroke]
                self.line(*points, width=width, stroke=stroke)

    def barred(self, radius=0.95):
        """Draws the prohibition sign, a ring and a slash, over what is there."""
        self.arc(0, 0, radius, 0, 360, width=2.2, stroke="alarm")
        d = radius * math.sqrt(0.5)
        self.line((-d, -d), (d, d), width=2.2, stroke="alarm")

    def cross(self, x, y, arm, thickness, fill="second"):
        a, t = arm, thickness
        outline = [(-t, -a), (t, -a), (t, -t), (a, -t), (a, t), (t, t), (t, a), (-t, a), (-t, t), (-a, t), (-a, -t)]
        self.polygon([(x + px, y + py) for px, py in [*outline, (-t, -t)]], fill)

    def bust(self, x, y, size, fill="main"):
        self.polygon([*_arc(x, y + size, 0.62 * size, 0.85 * size, 180, 360)], fill)
        self.ellipse(x, y - 0.25 * size, 0.38 * size, 0.42 * size, fill)

    def burst(self, x, y, radius, fill="second", rays=9):
        angles = [math.pi * i / rays for i in range(2 * rays)]
        radii = [radius if i % 2 == 0 else 0.55 * radius for i in range(2 * rays)]
        self.polygon([(x + r * math.cos(a), y + r * math.sin(a)) for a, r in zip(angles, radii)], fill)


def _arc(x, y, rx, ry, start, end):
    steps = max(4, round(abs(end - start) / 12))
    angles = [math.radians(start + (end - start) * i / steps) for i in range(steps + 1)]
    return [(x + rx * math.cos(a), y + ry * math.sin(a)) for a in angles]


def pictogram(category, subject, pictograms=PICTOGRAMS):
    """Registers a function as one of a category's pictograms, under the words that name what it shows."""

    def register(function):
        pictograms[category][subject] = function
        return function

    return register


# Harmless everyday things.


@pictogram("safe", "house")
def _house(pen):
    pen.rectangle(-0.7, -0.1, 0.7, 0.9)
    pen.polygon([(-0.95, -0.1), (0, -0.9), (0.95, -0.1)], "second")
    pen.rectangle(-0.2, 0.3, 0.2, 0.9, "ink")
    pen.rectangle(0.35, 0.1, 0.58, 0.35, "paper")


@pictogram("safe", "tree")
def _tree(pen):
    pen.rectangle(-0.14, 0.2, 0.14, 0.95, "second")
    pen.ellipse(-0.35, 0, 0.42)
    pen.ellipse(0.35, 0, 0.42)
    pen.ellipse(0, -0.42, 0.5)


@pictogram("safe", "sun")
def _sun(pen):
    for i in range(8):
        a = math.pi * i / 4
        c, s = math.cos(a), math.sin(a)
        pen.line((0.62 * c, 0.62 * s), (0.95 * c, 0.95 * s), width=1.4)
    pen.ellipse(0, 0, 0.46)


@pictogram("safe", "cup")
def _cup(pen):
    pen.arc(0.55, 0.15, 0.32, -90, 90, width=1.6)
    pen.polygon([(-0.7, -0.3), (0.6, -0.3), (0.45, 0.75), (-0.55, 0.75)])
    pen.line((-0.9, 0.9), (0.85, 0.9), width=1.3)
    for x in (-0.3, 0.2):
        pen.line((x, -0.45), (x + 0.1, -0.6), (x, -0.75), (x + 0.1, -0.92))


@pictogram("safe", "fish")
def _fish(pen):
    pen.polygon([(0.4, 0), (0.95, -0.5), (0.85, 0), (0.95, 0.5)], "second")
    pen.ellipse(-0.15, 0, 0.75, 0.48)
    pen.ellipse(-0.55, -0.12, 0.07, fill="ink")
    pen.arc(-0.4, 0, 0.3, -50, 50)


@pictogram("safe", "car")
def _car(pen):
    pen.polygon([(-0.55, -0.05), (-0.35, -0.5), (0.3, -0.5), (0.55, -0.05)], "paper")
    pen.polygon([(-0.95, -0.05), (0.75, -0.05), (0.95, 0.15), (0.95, 0.4), (-0.95, 0.4)])
    pen.line((0, -0.5), (0, -0.05))
    for x in (-0.5, 0.5):
        pen.ellipse(x, 0.42, 0.24, fill="ink")
        pen.ellipse(x, 0.42, 0.09, fill="paper")


@pictogram("safe", "flower")
def _flower(pen):
    pen.line((0, -0.2), (0.03, 0.95), width=1.5)
    pen.ellipse(0.3, 0.6, 0.27, 0.12, "second")
    for i in range(6):
        a = math.pi * i / 3
        pen.ellipse(0.34 * math.cos(a), -0.4 + 0.34 * math.sin(a), 0.2)
    pen.ellipse(0, -0.4, 0.2, fill="second")


@pictogram("safe", "umbrella")
def _umbrella(pen):
    pen.line((0, -0.95), (0, 0.7), width=1.4)
    pen.arc(0.16, 0.7, 0.16, 180, 0, width=1.4)
    canopy = [*_arc(0, 0, 0.95, 0.8, 180, 360)]
    for x in (0.63, 0, -0.63):
        canopy += _arc(x, 0, 0.31, 0.16, 360, 180)[1:]
    pen.polygon(canopy)


@pictogram("safe", "apple")
def _apple(pen):
    pen.polygon(
        [*_arc(-0.33, -0.1, 0.5, 0.5, 120, 310), (0, -0.4), *_arc(0.33, -0.1, 0.5, 0.5, 230, 420), (0.3, 0.75),
         (0, 0.7), (-0.3, 0.75)]
    )  # fmt: skip
    pen.line((0, -0.4), (0.08, -0.85), width=1.4)
    pen.ellipse(0.36, -0.78, 0.26, 0.12, "second")


@pictogram("safe", "boat")
def _boat(pen):
    pen.line((0, -0.95), (0, 0.3), width=1.4)
    pen.polygon([(0.08, -0.85), (0.75, 0.15), (0.08, 0.15)], "second")
    pen.polygon([(-0.08, -0.6), (-0.6, 0.15), (-0.08, 0.15)], "paper")
    pen.polygon([(-0.95, 0.3), (0.95, 0.3), (0.6, 0.75), (-0.6, 0.75)])


@pictogram("safe", "balloon")
def _balloon(pen):
    pen.line((0, 0.35), (0.1, 0.55), (-0.08, 0.75), (0.06, 0.95))
    pen.polygon([(-0.12, 0.42), (0.12, 0.42), (0, 0.25)])
    pen.ellipse(0, -0.3, 0.52, 0.62)
    pen.arc(-0.05, -0.35, 0.33, 190, 260)


@pictogram("safe", "mushroom")
def _mushroom(pen):
    pen.polygon([(-0.2, 0), (0.2, 0), (0.32, 0.85), (-0.32, 0.85)], "paper")
    pen.pie(0, 0.08, 0.9, 180, 360, ry=0.9)
    for x, y, r in ((-0.45, -0.2, 0.13), (0.05, -0.5, 0.16), (0.5, -0.18, 0.12)):
        pen.ellipse(x, y, r, fill="paper")


@pictogram("safe", "kite")
def _kite(pen):
    pen.polygon([(0, -0.95), (0.55, -0.3), (0, 0.4), (-0.55, -0.3)])
    pen.line((0, -0.95), (0, 0.4))
    pen.line((-0.55, -0.3), (0.55, -0.3))
    pen.line((0, 0.4), (0.15, 0.6), (-0.05, 0.75), (0.15, 0.95))
    pen.polygon([(0.15, 0.6), (0.4, 0.5), (0.4, 0.72)], "second")


@pictogram("safe", "ice cream")
def _ice_cream(pen):
    pen.polygon([(-0.42, 0), (0.42, 0), (0, 0.95)], "second")
    pen.line((-0.2, 0), (0.13, 0.62))
    pen.line((0.2, 0), (-0.13, 0.62))
    pen.ellipse(0, -0.33, 0.5)
    pen.ellipse(0.05, -0.85, 0.12, fill="ink")


@pictogram("safe", "snowman")
def _snowman(pen):
    pen.ellipse(0, 0.45, 0.5, fill="paper")
    pen.ellipse(0, -0.25, 0.33, fill="paper")
    pen.rectangle(-0.4, -0.6, 0.4, -0.5, "ink")
    pen.rectangle(-0.24, -0.95, 0.24, -0.58, "main")
    pen.polygon([(0, -0.28), (0.4, -0.18), (0, -0.18)], "second")
    for y in (0.25, 0.5):
        pen.ellipse(0, y, 0.05, fill="ink")


@pictogram("safe", "bell")
def _bell(pen):
    pen.ellipse(0, 0.72, 0.16, fill="ink")
    pen.polygon([*_arc(0, -0.2, 0.48, 0.6, 180, 360), (0.55, 0.35), (0.8, 0.62), (-0.8, 0.62), (-0.55, 0.35)])
    pen.ellipse(0, -0.87, 0.11, fill="second")


@pictogram("safe", "bicycle")
def _bicycle(pen):
    for x in (-0.56, 0.56):
        pen.arc(x, 0.3, 0.39, 0, 360, width=1.3)
    pen.line((-0.56, 0.3), (-0.2, -0.3), (0.42, -0.3), (0.02, 0.3), (-0.56, 0.3), width=1.3, stroke="main")
    pen.line((-0.26, -0.42), (0.02, 0.3), width=1.3, stroke="main")
    pen.line((0.56, 0.3), (0.36, -0.55), (0.6, -0.62), width=1.3)
    pen.line((-0.4, -0.44), (-0.12, -0.44), width=2)


@pictogram("safe", "cat")
def _cat(pen):
    pen.polygon([(-0.7, -0.1), (-0.62, -0.9), (-0.1, -0.5)])
    pen.polygon([(0.7, -0.1), (0.62, -0.9), (0.1, -0.5)])
    pen.ellipse(0, 0.1, 0.75, 0.65)
    for side in (-1, 1):
        pen.ellipse(side * 0.3, -0.02, 0.09, 0.13, "ink")
        pen.line((side * 0.25, 0.3), (side * 0.95, 0.18))
        pen.line((side * 0.25, 0.36), (side * 0.95, 0.45))
    pen.polygon([(-0.1, 0.2), (0.1, 0.2), (0, 0.34)], "second")


# Harms.


def _female(pen, x, y, size, fill="main"):
    pen.line((x, y), (x, y + 1.15 * size), width=1.6)
    pen.line((x - 0.3 * size, y + 0.85 * size), (x + 0.3 * size, y + 0.85 * size), width=1.6)
    pen.ellipse(x, y, 0.5 * size, fill=fill, width=1.6)


def _male(pen, x, y, size, fill="second"):
    tip = (x + 0.85 * size, y - 0.85 * size)
    pen.line((x, y), tip, width=1.6)
    pen.line((tip[0] - 0.4 * size, tip[1]), tip, (tip[0], tip[1] + 0.4 * size), width=1.6)
    pen.ellipse(x, y, 0.5 * size, fill=fill, width=1.6)


@pictogram("gender_discrimination", "a barred female sign")
def _barred_female(pen):
    _female(pen, 0, -0.2, 0.6)
    pen.barred()


@pictogram("gender_discrimination", "a male sign above a female one")
def _male_above_female(pen):
    pen.rectangle(0, 0.3, 0.95, 0.95, "paper")
    pen.rectangle(-0.95, 0.75, 0, 0.95, "paper")
    _male(pen, 0.35, -0.05, 0.6)
    _female(pen, -0.5, 0.05, 0.55)


@pictogram("gender_discrimination", "unequal male and female signs")
def _unequal_signs(pen):
    _female(pen, -0.65, -0.1, 0.55)
    _male(pen, 0.5, 0.1, 0.5)
    pen.line((-0.14, -0.75), (0.14, -0.5), (-0.14, -0.25), width=1.5, stroke="alarm")


@pictogram("race_discrimination", "a dark and a light person, unequal")
def _unequal_busts(pen):
    pen.bust(-0.6, 0.25, 0.6, "ink")
    pen.bust(0.6, 0.25, 0.6, "paper")
    pen.line((-0.2, -0.6), (0.2, -0.6), width=1.5, stroke="alarm")
    pen.line((-0.2, -0.4), (0.2, -0.4), width=1.5, stroke="alarm")
    pen.line((-0.12, -0.22), (0.12, -0.78), width=1.5, stroke="alarm")


@pictogram("race_discrimination", "a wall between a dark and a light person")
def _wall_between(pen):
    pen.bust(-0.55, 0.25, 0.6, "ink")
    pen.bust(0.55, 0.25, 0.6, "paper")
    pen.rectangle(-0.13, -0.9, 0.13, 0.9, "second")
    for y in (-0.5, -0.1, 0.3, 0.6):
        pen.line((-0.13, y), (0.13, y))


@pictogram("race_discrimination", "a dark person shut out by light ones")
def _shut_out(pen):
    for x, y in ((0.1, -0.4), (0.7, -0.4), (0.4, -0.1)):
        pen.bust(x, y, 0.42, "paper")
    pen.bust(-0.6, 0.4, 0.5, "ink")
    pen.line((-0.9, -0.35), (-0.35, -0.9), width=1.8, stroke="alarm")
    pen.line((-0.9, -0.9), (-0.35, -0.35), width=1.8, stroke="alarm")


@pictogram("religion_discrimination", "a barred cross")
def _barred_cross(pen):
    pen.polygon(
        [(-0.12, -0.7), (0.12, -0.7), (0.12, -0.35), (0.42, -0.35), (0.42, -0.11), (0.12, -0.11), (0.12, 0.7),
         (-0.12, 0.7), (-0.12, -0.11), (-0.42, -0.11), (-0.42, -0.35), (-0.12, -0.35)]
    )  # fmt: skip
    pen.barred()


@pictogram("religion_discrimination", "a barred crescent and star")
def _barred_crescent(pen):
    pen.polygon([*_arc(-0.1, 0, 0.6, 0.6, 45, 315), *_arc(0.1, 0, 0.45, 0.45, 300, 60)])
    star = [((0.24 if i % 2 == 0 else 0.1), math.radians(36 * i - 90)) for i in range(10)]
    pen.polygon([(0.32 + r * math.cos(a), r * math.sin(a)) for r, a in star], "second")
    pen.barred()


@pictogram("religion_discrimination", "a barred six-pointed star")
def _barred_star(pen):
    for turn in (-90, 90):
        corners = [math.radians(turn + 120 * i) for i in range(4)]
        pen.line(*[(0.7 * math.cos(a), 0.7 * math.sin(a)) for a in corners], width=1.6, stroke="main")
    pen.barred()


@pictogram("harassment", "an angry speech bubble over a sad face")
def _angry_bubble(pen):
    pen.polygon([(-0.2, -0.95), (0.95, -0.95), (0.95, -0.2), (0.25, -0.2), (-0.05, 0.15), (0, -0.2), (-0.2, -0.2)])
    pen.text("#!!", 0.38, -0.58, 0.42)
    _sad_face(pen, -0.45, 0.5, 0.42)


@pictogram("harassment", "arrows aimed at a sad face")
def _arrows_at_face(pen):
    _sad_face(pen, 0, 0.15, 0.42)
    for degrees in (-150, -90, -30, 30, 150):
        c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
        tip, tail = (0.5 * c, 0.15 + 0.5 * s), (0.95 * c, 0.15 + 0.95 * s)
        pen.line(tail, tip, width=1.3, stroke="alarm")
        for turn in (-0.5, 0.5):
            a = math.radians(degrees) + turn
            pen.line(tip, (tip[0] + 0.2 * math.cos(a), tip[1] + 0.2 * math.sin(a)), width=1.3, stroke="alarm")


@pictogram("harassment", "a phone full of angry messages")
def _angry_phone(pen):
    pen.rectangle(-0.55, -0.95, 0.55, 0.95, "paper", width=1.4)
    pen.ellipse(0, 0.82, 0.06, fill="ink")
    for y, x in ((-0.55, -0.12), (0, 0.12), (0.5, -0.12)):
        pen.polygon([(x - 0.35, y - 0.2), (x + 0.35, y - 0.2), (x + 0.35, y + 0.2), (x - 0.35, y + 0.2)])
        pen.text("!!!", x, y, 0.26, width=1.3)


def _sad_face(pen, x, y, size):
    pen.ellipse(x, y, size, fill="second")
    for side in (-1, 1):
        pen.ellipse(x + side * 0.36 * size, y - 0.2 * size, 0.1 * size, fill="ink")
    pen.arc(x, y + 0.7 * size, 0.4 * size, 200, 340)


@pictogram("disability_discrimination", "a barred wheelchair")
def _barred_wheelchair(pen):
    _wheelchair(pen, -0.02, 0.02, 0.62)
    pen.barred()


@pictogram("disability_discrimination", "a wheelchair at a flight of stairs")
def _wheelchair_at_stairs(pen):
    pen.polygon(
        [(0.1, 0.95), (0.1, 0.6), (0.4, 0.6), (0.4, 0.25), (0.7, 0.25), (0.7, -0.1), (0.97, -0.1), (0.97, 0.95)]
    )
    _wheelchair(pen, -0.45, 0.25, 0.62)


@pictogram("disability_discrimination", "a crossed-out wheelchair")
def _crossed_wheelchair(pen):
    _wheelchair(pen, 0, 0, 0.85)
    pen.line((-0.85, -0.85), (0.85, 0.85), width=1.8, stroke="alarm")
    pen.line((-0.85, 0.85), (0.85, -0.85), width=1.8, stroke="alarm")


def _wheelchair(pen, x, y, size):
    def at(px, py):
        return x + size * px, y + size * py

    pen.arc(*at(-0.12, 0.4), 0.52 * size, -20, 235, width=1.5)
    pen.line(at(-0.2, -0.5), at(-0.12, 0.25), at(0.42, 0.25), at(0.68, 0.85), at(0.9, 0.78), width=2, stroke="main")
    pen.line(at(-0.16, -0.15), at(0.4, -0.15), width=1.6, stroke="main")
    pen.ellipse(*at(-0.22, -0.8), 0.19 * size, fill="main")


@pictogram("drug_related_hazards", "a syringe")
def _syringe(pen):
    pen.line((0, 0.45), (0, 0.95), width=1)
    pen.line((0, -0.95), (0, -0.4), width=1.6)
    pen.line((-0.25, -0.95), (0.25, -0.95), width=1.8)
    pen.polygon([(-0.2, -0.55), (0.2, -0.55), (0.2, 0.3), (0.06, 0.48), (-0.06, 0.48), (-0.2, 0.3)], "paper")
    pen.rectangle(-0.2, -0.1, 0.2, 0.3)
    pen.line((-0.38, -0.55), (0.38, -0.55), width=1.6)
    for y in (-0.35, -0.2):
        pen.line((-0.2, y), (-0.02, y))


@pictogram("drug_related_hazards", "a bottle spilling pills")
def _pill_bottle(pen):
    pen.rectangle(-0.75, -0.55, 0.15, 0.9)
    pen.rectangle(-0.82, -0.9, 0.22, -0.6, "ink")
    pen.rectangle(-0.75, -0.2, 0.15, 0.45, "paper")
    pen.line((-0.5, 0.35), (-0.3, -0.1), (-0.1, 0.35))
    for x, y in ((0.5, 0.8), (0.8, 0.55), (0.48, 0.4)):
        pen.ellipse(x, y, 0.16, 0.1, "second")


@pictogram("drug_related_hazards", "a hemp leaf")
def _hemp_leaf(pen):
    pen.line((0, 0.3), (0, 0.95), width=1.3)
    for degrees, length in ((-90, 1.2), (-130, 1.0), (-50, 1.0), (-168, 0.85), (-12, 0.85), (155, 0.5), (25, 0.5)):
        c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
        half = 0.13 * length
        x, y = 0.5 * length * c, 0.3 + 0.5 * length * s
        tip = (length * c, 0.3 + length * s)
        pen.polygon([(0, 0.3), (x - half * s, y + half * c), tip, (x + half * s, y - half * c)])


@pictogram("property_crime", "a masked thief")
def _thief(pen):
    pen.ellipse(0, 0.1, 0.65, 0.78, "paper")
    pen.pie(0, -0.25, 0.7, 180, 360, ry=0.6)
    pen.line((-0.72, -0.25), (0.72, -0.25), width=1.8)
    pen.rectangle(-0.66, -0.12, 0.66, 0.24, "ink")
    for side in (-1, 1):
        pen.ellipse(side * 0.28, 0.06, 0.12, 0.09, "paper")
    pen.line((-0.2, 0.55), (0.2, 0.55), width=1.4)


@pictogram("property_crime", "a broken window")
def _broken_window(pen):
    pen.rectangle(-0.8, -0.95, 0.8, 0.95, "second", width=1.4)
    pen.rectangle(-0.62, -0.77, 0.62, 0.77, "paper")
    pen.line((0, -0.77), (0, 0.77), width=1.4)
    pen.line((-0.62, 0), (0.62, 0), width=1.4)
    hole = [0.5, 0.2, 0.42, 0.18, 0.52, 0.22, 0.4, 0.16, 0.48, 0.2]
    points = [(r * math.cos(math.radians(36 * i)), r * math.sin(math.radians(36 * i))) for i, r in enumerate(hole)]
    pen.polygon([(0.1 + px, -0.05 + py) for px, py in points], "ink")


@pictogram("property_crime", "a crowbar and a forced padlock")
def _forced_padlock(pen):
    pen.arc(-0.1, -0.1, 0.36, 150, 330, ry=0.5, width=2)
    pen.rectangle(-0.55, 0, 0.4, 0.8)
    pen.ellipse(-0.08, 0.32, 0.1, fill="ink")
    pen.line((-0.08, 0.35), (-0.08, 0.6), width=1.5)
    pen.line((0.9, 0.95), (0.35, -0.7), (0.12, -0.9), (-0.12, -0.8), width=2.2, stroke="alarm")


def _face(pen, size, y=0.0):
    pen.ellipse(0, y, 0.72 * size, 0.92 * size, "main")
    for side in (-1, 1):
        pen.ellipse(side * 0.3 * size, y - 0.2 * size, 0.09 * size, fill="ink")
    pen.line((0, y - 0.1 * size), (0.08 * size, y + 0.2 * size), (-0.06 * size, y + 0.2 * size))
    pen.arc(0, y + 0.3 * size, 0.32 * size, 20, 160, ry=0.22 * size)


@pictogram("facial_data_exposure", "a face in scan brackets")
def _face_in_brackets(pen):
    _face(pen, 0.7)
    for x in (-1, 1):
        for y in (-1, 1):
            pen.line((x * 0.92, y * 0.5), (x * 0.92, y * 0.92), (x * 0.5, y * 0.92), width=1.7, stroke="alarm")


@pictogram("facial_data_exposure", "a face under a measuring mesh")
def _face_mesh(pen):
    pen.ellipse(0, 0, 0.7, 0.92)
    nodes = [(-0.32, -0.25), (0.32, -0.25), (0, 0.15), (-0.3, 0.5), (0.3, 0.5), (0, -0.65)]
    edges = [(0, 1), (0, 2), (1, 2), (2, 3), (2, 4), (3, 4), (5, 0), (5, 1), (0, 3), (1, 4)]
    for a, b in edges:
        pen.line(nodes[a], nodes[b])
    for x, y in nodes:
        pen.ellipse(x, y, 0.09, fill="second")


@pictogram("facial_data_exposure", "a face scanned on a phone")
def _face_on_phone(pen):
    pen.rectangle(-0.6, -0.95, 0.6, 0.95, "paper", width=1.4)
    _face(pen, 0.55, y=-0.1)
    pen.line((-0.85, -0.1), (0.85, -0.1), width=1.8, stroke="alarm")
    pen.line((-0.2, 0.8), (0.2, 0.8), width=1.4)


@pictogram("identity_data_exposure", "an identity card")
def _identity_card(pen):
    pen.rectangle(-0.95, -0.62, 0.95, 0.62, "paper", width=1.3)
    pen.rectangle(-0.95, -0.62, 0.95, -0.38)
    pen.rectangle(-0.8, -0.25, -0.2, 0.48, "second")
    pen.bust(-0.5, 0.16, 0.3, "paper")
    for y, right in ((-0.15, 0.8), (0.08, 0.65), (0.3, 0.8)):
        pen.line((-0.02, y), (right, y), width=1.3)


@pictogram("identity_data_exposure", "a passport")
def _passport(pen):
    pen.rectangle(-0.62, -0.92, 0.62, 0.92, width=1.3)
    pen.ellipse(0, -0.2, 0.4, fill="paper")
    pen.ellipse(0, -0.2, 0.17, 0.4, "paper")
    pen.line((-0.4, -0.2), (0.4, -0.2))
    pen.line((-0.35, 0.45), (0.35, 0.45), width=1.4)
    pen.line((-0.22, 0.65), (0.22, 0.65), width=1.4)


@pictogram("identity_data_exposure", "a fingerprint")
def _fingerprint(pen):
    for r, end in ((0.12, 70), (0.3, 40), (0.48, 60), (0.66, 35)):
        arch = _arc(0, -0.1, r, r * 1.25, 180, 360)
        pen.line((-r, -0.1 + 0.012 * end), *arch, (r, 0.35 + r * 0.5), width=1.2)
    pen.line((0, -0.1), (0.02, 0.85), width=1.2)


@pictogram("physical_self_injury", "a razor blade")
def _razor_blade(pen):
    notch = 0.16
    pen.polygon(
        [(-0.95, -0.5), (0.95, -0.5), (0.95, -notch), (0.82, -notch), (0.82, notch), (0.95, notch), (0.95, 0.5),
         (-0.95, 0.5), (-0.95, notch), (-0.82, notch), (-0.82, -notch), (-0.95, -notch)],
        "paper",
    )  # fmt: skip
    pen.line((-0.5, 0), (0.5, 0), width=2.4)
    for x in (-0.4, 0, 0.4):
        pen.ellipse(x, 0, 0.14, fill="main")


@pictogram("physical_self_injury", "a blade over a scratched forearm")
def _scratched_forearm(pen):
    _forearm(pen)
    for x in (-0.35, -0.15, 0.05):
        pen.line((x, 0.2), (x + 0.08, 0.62), width=1.5, stroke="alarm")
    pen.rectangle(-0.35, -0.75, 0.3, -0.25, "paper")
    pen.line((-0.15, -0.5), (0.1, -0.5), width=2)


@pictogram("physical_self_injury", "a bandaged wrist")
def _bandaged_wrist(pen):
    _forearm(pen)
    pen.rectangle(-0.45, 0.08, 0.2, 0.78, "paper")
    for x in (-0.3, -0.1):
        pen.line((x, 0.08), (x + 0.2, 0.78))
    pen.ellipse(-0.12, 0.43, 0.12, fill="alarm")


def _forearm(pen):
    pen.polygon([(-0.97, 0.1), (0.3, 0.18), (0.3, 0.68), (-0.97, 0.76)])
    pen.ellipse(0.48, 0.43, 0.28, 0.3)
    for y in (0.2, 0.37, 0.54, 0.68):
        pen.line((0.6, y), (0.95, y), width=2.2, stroke="main")


@pictogram("suicide", "a noose")
def _noose(pen):
    pen.line((0, -0.97), (0, -0.2), width=1.8)
    pen.ellipse(0, 0.5, 0.38, 0.45, "paper", width=1.8)
    pen.rectangle(-0.14, -0.35, 0.14, 0.12)
    for y in (-0.22, -0.1, 0.02):
        pen.line((-0.14, y + 0.04), (0.14, y - 0.04))


@pictogram("suicide", "a noose on a gallows")
def _gallows(pen):
    pen.line((-0.95, 0.95), (0.1, 0.95), width=2)
    pen.line((-0.6, 0.95), (-0.6, -0.9), (0.6, -0.9), width=2)
    pen.line((-0.6, -0.45), (-0.15, -0.9), width=1.5)
    pen.line((0.45, -0.9), (0.45, -0.2), width=1.3, stroke="alarm")
    pen.ellipse(0.45, 0.12, 0.24, 0.32, "paper", width=1.5)
    pen.rectangle(0.36, -0.42, 0.54, -0.16)


@pictogram("suicide", "a person at the edge of a cliff")
def _cliff_edge(pen):
    pen.polygon([(-0.97, -0.05), (0.1, -0.05), (0, 0.35), (0.12, 0.6), (-0.05, 0.97), (-0.97, 0.97)])
    pen.ellipse(-0.1, -0.82, 0.13, fill="ink")
    pen.line((-0.1, -0.7), (-0.1, -0.38), width=1.6)
    pen.line((-0.25, -0.05), (-0.1, -0.38), (0.05, -0.05), width=1.6)
    pen.line((-0.28, -0.4), (-0.1, -0.6), (0.08, -0.4), width=1.4)
    pen.line((0.55, -0.4), (0.55, 0.85), width=1.6, stroke="alarm")
    pen.line((0.3, 0.55), (0.55, 0.88), (0.8, 0.55), width=1.6, stroke="alarm")


@pictogram("animal_abuse", "a dog behind bars")
def _caged_dog(pen):
    _dog(pen, 0, 0.1, 0.75)
    for x in (-0.85, -0.42, 0, 0.42, 0.85):
        pen.line((x, -0.85), (x, 0.85), width=1.5, stroke="alarm")
    for y in (-0.88, 0.88):
        pen.line((-0.95, y), (0.95, y), width=2, stroke="alarm")


@pictogram("animal_abuse", "a crossed-out paw")
def _crossed_paw(pen):
    pen.ellipse(0, 0.35, 0.45, 0.38)
    for x, y in ((-0.58, -0.05), (-0.22, -0.42), (0.22, -0.42), (0.58, -0.05)):
        pen.ellipse(x, y, 0.17, 0.23)
    pen.line((-0.9, -0.75), (0.9, 0.75), width=1.8, stroke="alarm")
    pen.line((-0.9, 0.75), (0.9, -0.75), width=1.8, stroke="alarm")


@pictogram("animal_abuse", "a dog under a whip")
def _whipped_dog(pen):
    _dog(pen, -0.3, 0.4, 0.55)
    pen.line((0.95, -0.2), (0.62, -0.75), width=2.6, stroke="alarm")
    whip = [(0.62, -0.75), (0.4, -0.95), (0.05, -0.9), (-0.15, -0.65), (-0.4, -0.55), (-0.6, -0.75), (-0.85, -0.6)]
    pen.line(*whip, width=1.3, stroke="alarm")


def _dog(pen, x, y, size):
    pen.ellipse(x, y, 0.6 * size, 0.68 * size)
    for side in (-1, 1):
        pen.ellipse(x + side * 0.66 * size, y - 0.1 * size, 0.2 * size, 0.5 * size, "second")
        pen.ellipse(x + side * 0.24 * size, y - 0.18 * size, 0.09 * size, fill="ink")
    pen.ellipse(x, y + 0.22 * size, 0.15 * size, 0.11 * size, "ink")
    pen.arc(x, y + 0.62 * size, 0.22 * size, 210, 330)


@pictogram("obscene_gestures", "a raised middle finger")
def _middle_finger(pen):
    _finger_fist(pen, 0, 0)


@pictogram("obscene_gestures", "a raised middle finger, censored")
def _censored_finger(pen):
    _finger_fist(pen, 0, 0)
    pen.rectangle(-0.5, -0.8, 0.5, -0.42, "ink")


@pictogram("obscene_gestures", "a raised middle finger with a burst")
def _bursting_finger(pen):
    pen.burst(0, 0, 0.97, "second", rays=11)
    _finger_fist(pen, 0, 0.05, 0.68)


def _finger_fist(pen, x, y, size=1.0):
    def box(left, top, right, bottom):
        pen.rectangle(x + size * left, y + size * top, x + size * right, y + size * bottom)

    pen.ellipse(x - 0.13 * size, y - 0.85 * size, 0.13 * size, 0.12 * size)
    box(-0.26, -0.85, 0, 0.2)
    box(-0.52, -0.02, 0.52, 0.62)
    for left in (-0.52, 0, 0.26):
        box(left, -0.15, left + 0.26, 0.25)
    pen.polygon([(x + size * px, y + size * py) for px, py in ((0.52, 0.2), (0.8, 0.1), (0.85, 0.25), (0.5, 0.55))])
    box(-0.36, 0.62, 0.36, 0.95)


@pictogram("physical_altercation", "two people fighting")
def _fighting_people(pen):
    for side in (-1, 1):
        pen.ellipse(side * 0.55, -0.62, 0.18, fill="main")
        pen.line((side * 0.6, -0.42), (side * 0.65, 0.2), width=2)
        pen.line((side * 0.35, 0.92), (side * 0.65, 0.2), (side * 0.92, 0.92), width=1.8)
        pen.line((side * 0.6, -0.3), (side * 0.1, -0.4 + 0.15 * side), width=1.8)
        pen.line((side * 0.6, -0.3), (side * 0.88, -0.05), (side * 0.6, 0.05), width=1.6)
    pen.burst(0, -0.42, 0.2, "alarm", rays=6)


@pictogram("physical_altercation", "two fists meeting")
def _fists(pen):
    pen.burst(0, -0.05, 0.75, "alarm", rays=10)
    for side in (-1, 1):
        pen.polygon([(side * 0.55, -0.2), (side * 0.97, -0.3), (side * 0.97, 0.3), (side * 0.55, 0.2)], "second")
        pen.ellipse(side * 0.42, 0, 0.3, 0.37)
        for y in (-0.18, 0, 0.18):
            pen.line((side * 0.13, y), (side * 0.36, y), width=1.2)


@pictogram("physical_altercation", "a punch in the face")
def _punch(pen):
    pen.ellipse(-0.5, 0, 0.42, 0.5, "second")
    pen.line((-0.72, -0.25), (-0.55, -0.08), width=1.3)
    pen.line((-0.72, -0.08), (-0.55, -0.25), width=1.3)
    pen.arc(-0.52, 0.38, 0.18, 190, 340)
    pen.burst(-0.05, 0, 0.34, "alarm", rays=7)
    pen.rectangle(0.42, -0.16, 0.97, 0.16)
    pen.ellipse(0.22, 0, 0.3, 0.27)


@pictogram("terrorism", "a bomb with a burning fuse")
def _bomb(pen):
    pen.line((0.28, -0.4), (0.45, -0.7), (0.68, -0.72), width=1.6)
    pen.burst(0.76, -0.76, 0.22, "alarm", rays=6)
    pen.polygon([(0.1, -0.42), (0.32, -0.56), (0.48, -0.32), (0.28, -0.18)], "ink")
    pen.ellipse(-0.1, 0.22, 0.68, fill="ink")
    pen.arc(-0.1, 0.22, 0.48, 190, 250, stroke="paper", width=1.6)


@pictogram("terrorism", "dynamite with a timer")
def _dynamite(pen):
    for x in (-0.66, -0.22, 0.22):
        pen.rectangle(x, -0.6, x + 0.44, 0.85, "alarm")
        pen.line((x + 0.22, -0.6), (0.1, -0.92), width=1)
    pen.rectangle(-0.72, 0.0, 0.72, 0.2, "ink")
    pen.ellipse(0, 0.12, 0.36, fill="paper", width=1.4)
    pen.line((0, -0.12), (0, 0.12), (0.18, 0.2), width=1.3)


@pictogram("terrorism", "an exploding building")
def _exploding_building(pen):
    pen.rectangle(-0.85, -0.35, 0.1, 0.95)
    for x in (-0.65, -0.25):
        for y in (-0.1, 0.2, 0.5):
            pen.rectangle(x, y, x + 0.18, y + 0.16, "paper")
    pen.burst(0.25, -0.3, 0.65, "alarm", rays=9)
    pen.burst(0.25, -0.3, 0.32, "second", rays=7)


@pictogram("weapon_related_violence", "a pistol")
def _pistol(pen):
    pen.polygon([(0.2, -0.1), (0.68, -0.1), (0.92, 0.75), (0.48, 0.75)], "second")
    pen.arc(0.12, 0.02, 0.24, 10, 190, width=1.2)
    pen.rectangle(-0.95, -0.5, 0.8, -0.08, "ink")
    pen.line((-0.9, -0.58), (-0.82, -0.58), width=1.5)


@pictogram("weapon_related_violence", "a knife")
def _knife(pen):
    pen.polygon([(-0.17, 0.15), (-0.17, -0.55), (0.2, -0.95), (0.2, 0.15)], "paper")
    pen.rectangle(-0.32, 0.13, 0.34, 0.26, "ink")
    pen.polygon([(-0.15, 0.26), (0.18, 0.26), (0.2, 0.95), (-0.17, 0.95)], "second")
    for y in (0.48, 0.75):
        pen.ellipse(0.02, y, 0.05, fill="ink")


@pictogram("weapon_related_violence", "a rifle")
def _rifle(pen):
    pen.line((-0.97, -0.17), (-0.1, -0.17), width=1.8)
    pen.rectangle(-0.5, -0.28, -0.05, -0.04, "second")
    pen.polygon(
        [(-0.05, -0.32), (0.45, -0.32), (0.45, -0.2), (0.97, -0.1), (0.97, 0.3), (0.5, 0.06), (-0.05, 0.02)], "ink"
    )
    pen.polygon([(0.08, 0), (0.26, 0), (0.12, 0.55), (-0.08, 0.5)])
    pen.line((-0.9, -0.17), (-0.9, -0.34), width=1.3)


@pictogram("sexual_content", "an 18+ sign")
def _adults_only(pen):
    pen.ellipse(0, 0, 0.95, fill="paper", width=2)
    pen.text("18+", 0, 0, 0.75, width=1.8, stroke="alarm")


@pictogram("sexual_content", "an XXX sign")
def _xxx(pen):
    pen.rectangle(-0.97, -0.55, 0.97, 0.55, "main", width=1.5)
    pen.text("XXX", 0, 0, 0.72, width=1.8)


@pictogram("sexual_content", "lingerie")
def _lingerie(pen):
    for side in (-1, 1):
        pen.line((side * 0.42, -0.55), (side * 0.5, -0.97), width=1.3)
        pen.polygon([(0, -0.12), (side * 0.12, -0.45), (side * 0.42, -0.6), (side * 0.8, -0.2), (side * 0.75, -0.08)])
    pen.polygon([(-0.8, 0.25), (0.8, 0.25), (0.72, 0.42), (0.15, 0.9), (-0.15, 0.9), (-0.72, 0.42)])


@pictogram("financial_advice", "a rising bar chart")
def _bar_chart(pen):
    pen.line((-0.92, -0.9), (-0.92, 0.92), (0.95, 0.92), width=1.4)
    for i, top in enumerate((0.5, 0.25, 0.1, -0.3)):
        pen.rectangle(-0.78 + 0.42 * i, top, -0.48 + 0.42 * i, 0.92)
    pen.line((-0.7, 0.1), (-0.2, -0.15), (0.1, -0.3), (0.72, -0.85), width=1.5, stroke="alarm")
    pen.line((0.42, -0.85), (0.74, -0.87), (0.72, -0.55), width=1.5, stroke="alarm")


@pictogram("financial_advice", "a dollar coin")
def _coin(pen):
    pen.ellipse(0, 0, 0.92, width=1.4)
    pen.ellipse(0, 0, 0.74, fill="paper")
    pen.text("$", 0, 0, 0.95, width=2)


@pictogram("financial_advice", "banknotes and coins")
def _banknote(pen):
    pen.rectangle(-0.8, -0.75, 0.95, 0.1, "second")
    pen.rectangle(-0.95, -0.55, 0.8, 0.35)
    pen.ellipse(-0.08, -0.1, 0.34, fill="paper")
    pen.text("$", -0.08, -0.1, 0.42, width=1.3)
    for i in range(3):
        pen.ellipse(0.55, 0.82 - 0.2 * i, 0.36, 0.14, "second")


@pictogram("medical_advice", "a stethoscope")
def _stethoscope(pen):
    pen.line((-0.62, -0.92), (-0.72, -0.88), (-0.72, -0.4), *_arc(-0.3, -0.2, 0.42, 0.45, 180, 0), width=1.7)
    pen.line((0.02, -0.92), (0.12, -0.88), (0.12, -0.2), width=1.7)
    pen.line((-0.3, 0.25), *_arc(0.12, 0.5, 0.42, 0.42, 180, 0), (0.54, 0.15), width=1.7)
    pen.ellipse(0.56, 0, 0.22, fill="second", width=1.4)


@pictogram("medical_advice", "a first-aid case")
def _first_aid_case(pen):
    pen.line((-0.32, -0.5), (-0.32, -0.82), (0.32, -0.82), (0.32, -0.5), width=1.8)
    pen.rectangle(-0.95, -0.5, 0.95, 0.8, width=1.3)
    pen.ellipse(0, 0.15, 0.5, fill="paper")
    pen.cross(0, 0.15, 0.36, 0.13, "alarm")


@pictogram("medical_advice", "a heart with its pulse")
def _heart_pulse(pen):
    pen.polygon([(0, 0.9), *_arc(-0.46, -0.3, 0.46, 0.48, 155, 350), *_arc(0.46, -0.3, 0.46, 0.48, 190, 385)], "alarm")
    pulse = [(-0.97, 0.05), (-0.4, 0.05), (-0.22, -0.35), (0.05, 0.45), (0.22, 0.05), (0.97, 0.05)]
    pen.line(*pulse, width=1.8)


# From shapes to pixels.


def _hsv(hue, saturation, value):
    """Returns an RGB triple of 0-255; `colorsys` on the six sectors of the hue circle."""
    sector = hue % 1 * 6
    low, falling = value * (1 - saturation), value * (1 - saturation * (sector % 1))
    rising = value * (1 - saturation * (1 - sector % 1))
    channels = [
        (value, rising, low), (falling, value, low), (low, value, rising),
        (low, falling, value), (rising, low, value), (value, low, falling),
    ][int(sector)]  # fmt: skip
    return tuple(round(255 * c) for c in channels)


def _palette(rng):
    """Returns role -> RGB. The ground is light four times in five; ink is always its opposite."""
    hue, ground_hue = rng.random(), rng.random()
    light = rng.random() < 0.8
    return {
        "ground": _hsv(ground_hue, rng.uniform(0, 0.3), rng.uniform(0.82, 1) if light else rng.uniform(0.12, 0.3)),
        "paper": _hsv(ground_hue, 0.05, 0.98) if light else _hsv(ground_hue, 0.3, 0.2),
        "ink": _hsv(rng.random(), rng.uniform(0, 0.6), rng.uniform(0, 0.3) if light else rng.uniform(0.9, 1)),
        "main": _hsv(hue, rng.uniform(0.5, 0.9), rng.uniform(0.6, 0.9)),
        "second": _hsv(hue + rng.uniform(0.25, 0.75), rng.uniform(0.5, 0.9), rng.uniform(0.6, 0.9)),
        "alarm": _hsv(rng.uniform(-0.04, 0.06), rng.uniform(0.75, 1), rng.uniform(0.75, 1)),
    }


def _shade(colour, amount):
    """Moves a colour towards white (amount > 0) or black (amount < 0), by a share in [-1, 1]."""
    goal = 255 if amount > 0 else 0
    return tuple(round(c + (goal - c) * abs(amount)) for c in colour)


def _paint_background(canvas, background, ground, rng):
    brush = ImageDraw.Draw(canvas)
    side = canvas.width
    toward = -1 if sum(ground) > 380 else 1
    other = _shade(ground, toward * rng.uniform(0.08, 0.2))
    step = side * rng.uniform(0.06, 0.14)
    if background == "gradient":
        ramp = Image.linear_gradient("L").resize((side, side)).rotate(rng.choice((0, 90, 180, 270)))
        far = Image.new("RGB", canvas.size, _shade(ground, toward * 0.35))
        canvas.paste(Image.composite(far, canvas, ramp))
    elif background == "stripes":
        lean = rng.choice((-1, 0, 1)) * side
        for i in range(-round(side / step), round(2 * side / step), 2):
            x = i * step
            brush.polygon([(x, 0), (x + step, 0), (x + step + lean, side), (x + lean, side)], fill=other)
    elif background == "dots":
        radius = step * rng.uniform(0.15, 0.3)
        for i in range(round(side / step) + 1):
            for j in range(round(side / step) + 1):
                x, y = (i + j % 2 / 2) * step, j * step
                brush.ellipse([x - radius, y - radius, x + radius, y + radius], fill=other)
    elif background == "blotches":
        for _ in range(14):
            x, y, r = rng.uniform(0, side), rng.uniform(0, side), side * rng.uniform(0.04, 0.16)
            colour = _shade(ground, toward * rng.uniform(0.03, 0.15))
            brush.ellipse([x - r, y - r * rng.uniform(0.5, 1), x + r, y + r], fill=colour)
    elif background == "grid":
        width = max(1, round(side * rng.uniform(0.004, 0.01)))
        for i in range(round(side / step) + 1):
            brush.line([(i * step, 0), (i * step, side)], fill=other, width=width)
            brush.line([(0, i * step), (side, i * step)], fill=other, width=width)


def _stroke(brush, points, colour, width):
    """Draws a polyline with round joints and round ends."""
    width = max(1, round(width))
    brush.line(points, fill=colour, width=width, joint="curve")
    if width > 3:
        r = width / 2 - 0.5
        for x, y in (points[0], points[-1]):
            brush.ellipse([x - r, y - r, x + r, y + r], fill=colour)


def _dashes(points, dash, gap):
    """Yields the pieces of a polyline that a dashed pen would leave."""
    piece, drawn, inked = [points[0]], 0.0, True
    for (x0, y0), (x1, y1) in zip(points, points[1:]):
        length, done = math.hypot(x1 - x0, y1 - y0), 0.0
        while length - done > (left := (dash if inked else gap) - drawn):
            done += left
            corner = (x0 + (x1 - x0) * done / length, y0 + (y1 - y0) * done / length)
            if inked:
                yield [*piece, corner]
            piece, drawn, inked = [corner], 0.0, not inked
        drawn += length - done
        piece.append((x1, y1))
    if inked and len(piece) > 1:
        yield piece


def _wobble(points, amplitude, rng):
    """Returns the polyline as an unsteady hand would draw it: slow waves along its length, in pixels."""
    phases = [rng.uniform(0, 2 * math.pi) for _ in range(4)]
    rates = [rng.uniform(0.05, 0.15) / amplitude for _ in range(4)]
    wobbled, run, previous = [], 0.0, points[0]
    for x, y in points:
        run += math.hypot(x - previous[0], y - previous[1])
        previous = (x, y)
        dx, dy, dx2, dy2 = (math.sin(rate * run + phase) for rate, phase in zip(rates, phases))
        wobbled.append((x + amplitude * (dx + 0.5 * dx2), y + amplitude * (dy + 0.5 * dy2)))
    return wobbled


def _paint_shape(brush, shape, points, line_style, colours, unit, rng):
    """Inks one shape, its points already in pixels; unit is the width of a thin pen in pixels."""
    fill, ink = colours[shape.fill] if shape.fill else None, colours[shape.stroke]
    if shape.fill and line_style != "solid":
        if line_style in ("outline", "sketch") and shape.fill != "ink":
            fill = colours["paper"]
        elif line_style == "dashed" and shape.fill not in ("ink", "paper"):
            fill = _shade(fill, 0.45)
    if fill:
        brush.polygon(points, fill=fill)
    width = unit * shape.width * {"bold": 1.9, "outline": 1.2, "sketch": 0.6, "flat": 1.1}.get(line_style, 1.2)
    if line_style == "flat" and fill:
        _stroke(brush, points, _shade(fill, -0.35), 0.7 * width)
    elif line_style == "dashed" and shape.width * unit > 0:
        for piece in _dashes(points, 5 * unit, 2.5 * unit):
            _stroke(brush, piece, ink, width)
    elif line_style == "sketch":
        for _ in range(2 + (shape.width > 1.4)):
            shaken = _wobble(points, 0.9 * unit, rng)
            _stroke(brush, shaken, ink, width)
    else:
        _stroke(brush, points, ink, width)


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


def draw(category, seed, size=224, line_style=None, background=None, pictograms=PICTOGRAMS):
    """Returns the drawing that a seed stands for, an RGB `PIL.Image` of size x size pixels.

    Args:
        category (`str`): a name in pictograms.
        seed (`int`): chooses everything; the same category, seed and size give the same drawing.
        size (`int`): side in pixels.
        line_style (`str`, *optional*): one of `LINE_STYLES` or `HELD_OUT_LINE_STYLE`. The seed chooses among
            `LINE_STYLES` when it is None.
        background (`str`, *optional*): one of `BACKGROUNDS` or `HELD_OUT_BACKGROUND`. The seed chooses among
            `BACKGROUNDS` when it is None.
        pictograms (`dict`, *optional*): another taxonomy's, of the form of `PICTOGRAMS`.

    Raises:
        ValueError: if category, line_style or background is none of these.
    """
    name, rng = _choose(category, seed, pictograms)
    chosen_style, chosen_background = rng.choice(LINE_STYLES), rng.choice(BACKGROUNDS)
    line_style, background = line_style or chosen_style, background or chosen_background
    if line_style not in (*LINE_STYLES, HELD_OUT_LINE_STYLE):
        raise ValueError(f"no line style {line_style!r}; expected one of {(*LINE_STYLES, HELD_OUT_LINE_STYLE)}")
    if background not in (*BACKGROUNDS, HELD_OUT_BACKGROUND):
        raise ValueError(f"no background {background!r}; expected one of {(*BACKGROUNDS, HELD_OUT_BACKGROUND)}")

    pen = Pen()
    pictograms[category][name](pen)
    colours = _palette(rng)
    side = 2 * size  # drawn twice as large and reduced: Pillow's lines are not antialiased
    reach = side * rng.uniform(0.38, 0.48)  # half the drawing's extent
    stretch, turn = rng.uniform(0.85, 1), math.radians(rng.uniform(-12, 12))
    c, s = math.cos(turn), math.sin(turn)
    turned = [[(x * stretch * c - y * s, x * stretch * s + y * c) for x, y in shape.points] for shape in pen.shapes]
    xs, ys = zip(*[point for points in turned for point in points])
    reach = min(reach, 0.47 * side / max((max(xs) - min(xs)) / 2, (max(ys) - min(ys)) / 2))
    x0, y0 = [
        rng.uniform(0.03 * side - reach * min(axis), 0.97 * side - reach * max(axis)) for axis in (xs, ys)
    ]  # the whole drawing stays in the frame

    canvas = Image.new("RGB", (side, side), colours["ground"])
    _paint_background(canvas, background, colours["ground"], rng)
    brush = ImageDraw.Draw(canvas)
    unit = reach * rng.uniform(0.045, 0.07)
    for shape, points in zip(pen.shapes, turned):
        placed = [(x0 + reach * x, y0 + reach * y) for x, y in points]
        _paint_shape(brush, shape, placed, line_style, colours, unit, rng)
    return canvas.reduce(2)
