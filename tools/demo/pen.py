"""The pen that draws pictograms: it collects shapes in unit coordinates, which have no ink yet.

x points to the right, y down, both within [-1, 1].
"""

import math
from dataclasses import dataclass


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
        self.polygon(arc_points(x, y, rx, ry or rx, 0, 360)[:-1], fill, width)

    def arc(self, x, y, rx, start, end, ry=None, width=1.0, stroke="ink"):
        """Draws an open arc; degrees, clockwise from the x axis since y points down."""
        self.line(*arc_points(x, y, rx, ry or rx, start, end), width=width, stroke=stroke)

    def pie(self, x, y, rx, start, end, ry=None, fill="main", width=1.0):
        self.polygon(arc_points(x, y, rx, ry or rx, start, end), fill, width)

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
        self.polygon([*arc_points(x, y + size, 0.62 * size, 0.85 * size, 180, 360)], fill)
        self.ellipse(x, y - 0.25 * size, 0.38 * size, 0.42 * size, fill)

    def burst(self, x, y, radius, fill="second", rays=9):
        angles = [math.pi * i / rays for i in range(2 * rays)]
        radii = [radius if i % 2 == 0 else 0.55 * radius for i in range(2 * rays)]
        self.polygon([(x + r * math.cos(a), y + r * math.sin(a)) for a, r in zip(angles, radii)], fill)


def arc_points(x, y, rx, ry, start, end):
    steps = max(4, round(abs(end - start) / 12))
    angles = [math.radians(start + (end - start) * i / steps) for i in range(steps + 1)]
    return [(x + rx * math.cos(a), y + ry * math.sin(a)) for a in angles]


def registrar(pictograms):
    """Returns the decorator `@pictogram(category, subject)`, which enters a function of a `Pen` into `pictograms`.

    Args:
        pictograms (`dict`): category name -> {subject: function}; a subject is the words that name what is drawn.
    """

    def pictogram(category, subject):
        def register(function):
            pictograms.setdefault(category, {})[subject] = function
            return function

        return register

    return pictogram
