"""Pictograms of harmless everyday things: the category "safe"."""

import math

from tools.demo.pen import arc_points, registrar


PICTOGRAMS = {}
pictogram = registrar(PICTOGRAMS)


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
    canopy = [*arc_points(0, 0, 0.95, 0.8, 180, 360)]
    for x in (0.63, 0, -0.63):
        canopy += arc_points(x, 0, 0.31, 0.16, 360, 180)[1:]
    pen.polygon(canopy)


@pictogram("safe", "apple")
def _apple(pen):
    pen.polygon(
        [*arc_points(-0.33, -0.1, 0.5, 0.5, 120, 310), (0, -0.4), *arc_points(0.33, -0.1, 0.5, 0.5, 230, 420),
         (0.3, 0.75), (0, 0.7), (-0.3, 0.75)]
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
    pen.polygon([*arc_points(0, -0.2, 0.48, 0.6, 180, 360), (0.55, 0.35), (0.8, 0.62), (-0.8, 0.62), (-0.55, 0.35)])
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
