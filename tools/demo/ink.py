"""From the shapes of a pictogram to pixels: palettes, backgrounds, line styles."""

import math

from PIL import Image, ImageDraw


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


def palette(rng):
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


def paint_background(canvas, background, ground, rng):
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
    elif background == "ruled":
        width, angle = max(1, round(side * rng.uniform(0.004, 0.01))), rng.uniform(0, math.pi)
        along, across = (math.cos(angle), math.sin(angle)), (-math.sin(angle), math.cos(angle))
        for i in range(-round(side / step), round(side / step) + 1):
            x, y = [side / 2 + i * step * to for to in across]
            ends = [(x + reach * along[0], y + reach * along[1]) for reach in (-side, side)]
            brush.line(ends, fill=other, width=width)
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


def _shifted(points, amplitude, rng):
    """Returns the polyline moved, stretched and sheared a little: its points move by some amplitudes (pixels)."""
    xs, ys = zip(*points)
    x, y, reach = sum(xs) / len(xs), sum(ys) / len(ys), max(max(xs) - min(xs), max(ys) - min(ys), 1)
    dx, dy, *rest = [rng.uniform(-amplitude, amplitude) for _ in range(6)]
    a, b, c, d = [move / reach for move in rest]
    return [(px + dx + a * (px - x) + b * (py - y), py + dy + c * (px - x) + d * (py - y)) for px, py in points]


def paint_shape(brush, shape, points, line_style, colours, unit, rng, thinness=1.0, num_strokes=1):
    """Inks one shape, its points already in pixels; unit is the width of a thin pen in pixels.

    Widths are multiplied by `thinness`. Of several strokes each line is drawn so often, a little elsewhere each time.
    """
    fill, ink = colours[shape.fill] if shape.fill else None, colours[shape.stroke]
    if shape.fill and line_style != "solid":
        if line_style in ("outline", "sketch") and shape.fill != "ink":
            fill = colours["paper"]
        elif line_style == "dashed" and shape.fill not in ("ink", "paper"):
            fill = _shade(fill, 0.45)
    if fill:
        brush.polygon(points, fill=fill)
    width = (
        thinness * unit * shape.width * {"bold": 1.9, "outline": 1.2, "sketch": 0.6, "flat": 1.1}.get(line_style, 1.2)
    )
    if line_style == "flat" and fill:
        _stroke(brush, points, _shade(fill, -0.35), 0.7 * width)
    elif line_style == "dashed" and shape.width * unit > 0:
        for piece in _dashes(points, 5 * unit, 2.5 * unit):
            _stroke(brush, piece, ink, width)
    elif line_style == "sketch":
        for _ in range(2 + (shape.width > 1.4)):
            shaken = _wobble(points, 0.9 * unit, rng)
            _stroke(brush, shaken, ink, width)
    elif num_strokes == 1:
        _stroke(brush, points, ink, width)
    else:
        for _ in range(num_strokes):
            _stroke(brush, _shifted(points, unit, rng), ink, width)
