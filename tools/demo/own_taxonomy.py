"""A taxonomy of one's own: what a school does not want on its picture wall, in drawings that the demo never saw.

It stands for the policy that a user brings along: a taxonomy here is nothing but names, titles and pictograms.
`draw_dataset.py` makes data of it, and a guard of five categories can be trained on that.

    >>> from tools.demo.own_taxonomy import PICTOGRAMS
    >>> from tools.demo.pictograms import draw, subject
    >>> subject("gambling", 7, pictograms=PICTOGRAMS)
    'a pair of dice'
"""

import math

from tools.demo.pen import registrar


TITLES = {
    "safe": "safe",
    "alcohol": "alcohol",
    "tobacco": "tobacco",
    "gambling": "gambling",
    "fast_food": "fast food",
}
"""Category name -> its words within an answer; the order is that of the guard's columns."""

PICTOGRAMS = {name: {} for name in TITLES}
"""As `tools.demo.pictograms.PICTOGRAMS`. What is safe here is none of what is safe there."""

pictogram = registrar(PICTOGRAMS)


@pictogram("safe", "pencil")
def _pencil(pen):
    def along(*points):  # from the tip at the lower left to the rubber at the upper right
        d = math.sqrt(0.5)
        return [(d * (x + y) - 0.85, d * (y - x) + 0.85) for x, y in points]

    pen.polygon(along((0.5, -0.2), (1.95, -0.2), (1.95, 0.2), (0.5, 0.2)))
    pen.line(*along((0.5, 0.07), (1.95, 0.07)))
    pen.line(*along((0.5, -0.07), (1.95, -0.07)))
    pen.polygon(along((1.95, -0.2), (2.35, -0.2), (2.35, 0.2), (1.95, 0.2)), "second")
    pen.polygon(along((0, 0), (0.5, -0.2), (0.5, 0.2)), "paper")
    pen.polygon(along((0, 0), (0.2, -0.08), (0.2, 0.08)), "ink")


@pictogram("safe", "open book")
def _open_book(pen):
    for side in (-1, 1):
        pen.polygon([(0, -0.45), (side * 0.95, -0.7), (side * 0.95, 0.55), (0, 0.8)], "main", width=1.4)
        pen.polygon([(0, -0.5), (side * 0.8, -0.7), (side * 0.8, 0.42), (0, 0.65)], "paper")
        for y in (-0.35, -0.1, 0.15):
            pen.line((side * 0.16, y), (side * 0.64, y - 0.13), width=1.2)


@pictogram("safe", "pair of scissors")
def _scissors(pen):
    for side in (-1, 1):
        pen.polygon([(side * -0.5, -0.95), (side * 0.05, 0.1), (side * 0.2, 0.02), (side * -0.38, -0.95)], "paper")
        pen.line((side * 0.1, 0.05), (side * 0.33, 0.38), width=2.2)
        pen.arc(side * 0.48, 0.63, 0.27, 0, 360, width=2.4, stroke="main")
    pen.ellipse(0, -0.1, 0.08, fill="second")


@pictogram("alcohol", "a glass of wine")
def _wine_glass(pen):
    pen.line((0, 0.1), (0, 0.85), width=1.8)
    pen.ellipse(0, 0.87, 0.45, 0.09, "paper")
    pen.pie(0, -0.9, 0.56, 0, 180, ry=1.1, fill="paper")
    pen.pie(0, -0.45, 0.51, 0, 180, ry=0.65, fill="main")


@pictogram("alcohol", "a mug of beer")
def _beer_mug(pen):
    pen.arc(0.38, 0.2, 0.45, -90, 90, width=2.6)
    pen.rectangle(-0.75, -0.5, 0.4, 0.92, "main", width=1.3)
    for x in (-0.45, -0.17, 0.11):
        pen.line((x, -0.1), (x, 0.72), width=1.4)
    for x, r in ((-0.65, 0.25), (0.3, 0.25), (-0.35, 0.32), (0.05, 0.3)):
        pen.ellipse(x, -0.55, r, fill="paper")


@pictogram("alcohol", "a bottle of wine")
def _wine_bottle(pen):
    side = [(0.13, -0.95), (0.13, -0.4), (0.24, -0.25), (0.34, -0.1), (0.36, 0.05), (0.36, 0.95)]
    pen.polygon([*side, *[(-x, y) for x, y in reversed(side)]])
    pen.rectangle(-0.17, -0.97, 0.17, -0.66, "second")
    pen.rectangle(-0.36, 0.2, 0.36, 0.72, "paper")
    for x, y in ((-0.12, 0.37), (0.12, 0.37), (0, 0.55)):
        pen.ellipse(x, y, 0.1, fill="ink")


def _smoke(pen, x, y, height):
    waves = [(x + 0.09 * math.sin(0.9 * i), y - height * i / 12) for i in range(13)]
    pen.line(*waves, width=1.3)
    pen.line(*[(px + 0.2, py - 0.1) for px, py in waves], width=1.3)


@pictogram("tobacco", "a burning cigarette")
def _cigarette(pen):
    pen.rectangle(-0.97, 0.35, 0.72, 0.65, "paper", width=1.2)
    pen.rectangle(-0.97, 0.35, -0.4, 0.65, "second", width=1.2)
    pen.rectangle(0.72, 0.35, 0.92, 0.65, "alarm", width=1.2)
    _smoke(pen, 0.72, 0.2, 0.9)


@pictogram("tobacco", "a tobacco pipe")
def _pipe(pen):
    pen.polygon([(-0.35, 0.35), (0.25, 0.2), (0.9, -0.25), (0.97, -0.1), (0.35, 0.45), (-0.3, 0.75)], "second")
    pen.polygon([(-0.9, -0.05), (-0.2, -0.05), (-0.2, 0.6), (-0.35, 0.8), (-0.7, 0.8), (-0.85, 0.6)])
    pen.rectangle(-0.95, -0.15, -0.15, 0.02, "ink")
    _smoke(pen, -0.65, -0.25, 0.65)


@pictogram("tobacco", "an ashtray")
def _ashtray(pen):
    pen.polygon([(-0.3, 0.45), (0.42, -0.2), (0.58, -0.02), (-0.14, 0.63)], "paper", width=1.2)
    pen.polygon([(0.42, -0.2), (0.55, -0.32), (0.71, -0.14), (0.58, -0.02)], "alarm", width=1.2)
    pen.polygon([(-0.95, 0.3), (0.2, 0.3), (0.2, 0.45), (0.4, 0.45), (0.4, 0.3), (0.95, 0.3), (0.7, 0.9), (-0.7, 0.9)])
    _smoke(pen, 0.5, -0.4, 0.5)


@pictogram("gambling", "a pair of dice")
def _dice(pen):
    pen.rectangle(-0.95, -0.9, 0, 0.05, "paper", width=1.5)
    for x, y in ((-0.72, -0.67), (-0.475, -0.425), (-0.23, -0.18)):
        pen.ellipse(x, y, 0.1, fill="ink")
    pen.rectangle(-0.05, -0.1, 0.95, 0.9, width=1.5)
    for x in (0.2, 0.7):
        for y in (0.15, 0.65):
            pen.ellipse(x, y, 0.1, fill="paper")
    pen.ellipse(0.45, 0.4, 0.1, fill="paper")


@pictogram("gambling", "playing cards")
def _cards(pen):
    for degrees, suit in ((-28, "ink"), (0, "main"), (28, "alarm")):
        c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))

        def at(*points, c=c, s=s):  # the cards turn about a point below them
            return [(x * c - (y - 1.2) * s, x * s + (y - 1.2) * c + 1.2) for x, y in points]

        pen.polygon(at((-0.38, -0.75), (0.38, -0.75), (0.38, 0.4), (-0.38, 0.4)), "paper", width=1.3)
        pen.polygon(at((0, -0.55), (0.24, -0.18), (0, 0.2), (-0.24, -0.18)), suit)


@pictogram("gambling", "a roulette wheel")
def _roulette(pen):
    pen.ellipse(0, 0, 0.95, fill="paper", width=1.4)
    for i in range(0, 16, 2):
        rim = [math.pi * (i + j) / 8 for j in (0, 0.5, 1)]
        pockets = [(r * math.cos(a), r * math.sin(a)) for a, r in zip((*rim, *rim[::-1]), (0.95,) * 3 + (0.5,) * 3)]
        pen.polygon(pockets, ("alarm", "ink")[i // 2 % 2], width=0.6)
    pen.ellipse(0, 0, 0.5, fill="second")
    pen.line((-0.3, 0), (0.3, 0), width=1.6)
    pen.line((0, -0.3), (0, 0.3), width=1.6)


@pictogram("fast_food", "a hamburger")
def _hamburger(pen):
    pen.rectangle(-0.85, 0.45, 0.85, 0.85, "second")
    pen.rectangle(-0.95, 0.15, 0.95, 0.45, "ink")
    pen.polygon([(-0.97, -0.02), (0.97, -0.02), (0.7, 0.2), (0.4, 0.02), (0, 0.22), (-0.4, 0.02), (-0.7, 0.2)], "main")
    pen.pie(0, -0.02, 0.9, 180, 360, ry=0.85, fill="second")
    for x, y in ((-0.4, -0.4), (0.05, -0.6), (0.45, -0.35), (0, -0.25)):
        pen.ellipse(x, y, 0.07, 0.045, "paper")


@pictogram("fast_food", "a slice of pizza")
def _pizza(pen):
    pen.polygon([(-0.75, -0.55), (0.75, -0.55), (0, 0.97)], "second", width=1.2)
    pen.rectangle(-0.9, -0.9, 0.9, -0.55, width=1.4)
    for x, y, r in ((-0.3, -0.25, 0.17), (0.28, -0.15, 0.19), (0, 0.35, 0.17)):
        pen.ellipse(x, y, r, fill="alarm")


@pictogram("fast_food", "a bag of fries")
def _fries(pen):
    for x, top in ((-0.5, -0.6), (0.34, -0.7), (-0.3, -0.9), (0.14, -0.95), (-0.08, -0.7)):
        pen.rectangle(x, top, x + 0.17, 0.3, "second")
    pen.polygon([(-0.7, -0.15), (-0.35, 0.05), (0.35, 0.05), (0.7, -0.15), (0.5, 0.95), (-0.5, 0.95)], "alarm")
