"""Pictograms of self-harm, violence, sexual content, and of advice that only experts should give."""

from tools.demo.pen import arc_points, registrar


PICTOGRAMS = {}
pictogram = registrar(PICTOGRAMS)


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
    pen.line((-0.62, -0.92), (-0.72, -0.88), (-0.72, -0.4), *arc_points(-0.3, -0.2, 0.42, 0.45, 180, 0), width=1.7)
    pen.line((0.02, -0.92), (0.12, -0.88), (0.12, -0.2), width=1.7)
    pen.line((-0.3, 0.25), *arc_points(0.12, 0.5, 0.42, 0.42, 180, 0), (0.54, 0.15), width=1.7)
    pen.ellipse(0.56, 0, 0.22, fill="second", width=1.4)


@pictogram("medical_advice", "a first-aid case")
def _first_aid_case(pen):
    pen.line((-0.32, -0.5), (-0.32, -0.82), (0.32, -0.82), (0.32, -0.5), width=1.8)
    pen.rectangle(-0.95, -0.5, 0.95, 0.8, width=1.3)
    pen.ellipse(0, 0.15, 0.5, fill="paper")
    pen.cross(0, 0.15, 0.36, 0.13, "alarm")


@pictogram("medical_advice", "a heart with its pulse")
def _heart_pulse(pen):
    pen.polygon(
        [(0, 0.9), *arc_points(-0.46, -0.3, 0.46, 0.48, 155, 350), *arc_points(0.46, -0.3, 0.46, 0.48, 190, 385)],
        "alarm",
    )
    pulse = [(-0.97, 0.05), (-0.4, 0.05), (-0.22, -0.35), (0.05, 0.45), (0.22, 0.05), (0.97, 0.05)]
    pen.line(*pulse, width=1.8)
