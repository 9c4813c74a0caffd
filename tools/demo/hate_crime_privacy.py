"""Pictograms of hate, crime and exposed data."""

import math

from tools.demo.pen import arc_points, registrar


PICTOGRAMS = {}
pictogram = registrar(PICTOGRAMS)


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
    pen.polygon([*arc_points(-0.1, 0, 0.6, 0.6, 45, 315), *arc_points(0.1, 0, 0.45, 0.45, 300, 60)])
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
        arch = arc_points(0, -0.1, r, r * 1.25, 180, 360)
        pen.line((-r, -0.1 + 0.012 * end), *arch, (r, 0.35 + r * 0.5), width=1.2)
    pen.line((0, -0.1), (0.02, 0.85), width=1.2)
