"""Scenes for the demo checkpoint: one to four pictograms on one picture, of which one is harmful or none.

    python -m tools.demo.scenes build/scenes --num 1000 --first-seed 1000000

A scene has any shape from 1:3 to 3:1, with sides of 112 to 336 pixels. Its drawings share background, paper and ink;
line style and colours are each one's own. Each lies within a square of its own, and the squares do not overlap. The
model sees all pictures reduced or enlarged to about `SEEN_PIXELS`, and a square is at least `LEAST_SEEN` pixels wide
as it sees it, a fifth of the picture's area. The label is the category of the harm, of which there is one at most, or
"safe".

OUT/images/ holds the pictures, each named for its seed, and OUT/data.jsonl a line each, as of `draw_dataset.py`. The
answer about a scene names its harm, or, where one of several harmless things is clearly the largest, that one "and
more". A row of things of about one size has a label and no answer.

    >>> from tools.demo.scenes import draw_scene
    >>> scene = draw_scene("suicide", seed=1)
    >>> scene.picture.size, scene.label, [drawing.category for drawing in scene.drawings]
    ((169, 169), 'suicide', ['suicide', 'safe', 'safe', 'safe'])
"""

import argparse
import json
import math
import multiprocessing
import random
import sys
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from tools.demo.draw_dataset import ANSWERS, NUM_PROCESSES, SYSTEM_PROMPTS, TAXONOMIES, plan_prompts, with_article
from tools.demo.ink import paint_background, palette
from tools.demo.pictograms import BACKGROUNDS, FIRST_HELD_OUT_SEED, LINE_STYLES, PICTOGRAMS, Placed


SIDES = (112, 336)  # pixels
MAX_DRAWINGS = 4
SEEN_PIXELS = 224 * 224  # of any picture as the model sees it, roughly: 48 to 80 tokens, a square 64
LEAST_SEEN = 101  # pixels of a drawing's square, as the model sees it: a fifth of the picture's area
HARMS = [name for name in PICTOGRAMS if name != "safe"]


@dataclass(frozen=True)
class Drawing:
    """A pictogram of a scene."""

    category: str
    subject: str
    box: tuple[int, int, int, int]  # left, top, right, bottom of its square, in pixels

    @property
    def width(self):
        return self.box[2] - self.box[0]


@dataclass(frozen=True)
class Scene:
    """A picture and what is on it."""

    picture: Image.Image
    label: str  # category of its harm, or "safe"
    drawings: list[Drawing]

    @property
    def largest(self):
        """The [`Drawing`] whose square is at least 1.2 times as wide as any other, or None."""
        *others, widest = sorted(self.drawings, key=lambda drawing: drawing.width)
        return widest if all(widest.width >= 1.2 * other.width for other in others) else None


def draw_scene(
    category,
    seed,
    num_drawings=None,
    size=None,
    least_seen=LEAST_SEEN,
    line_style=None,
    background=None,
    by_hand=False,
):
    """Returns the [`Scene`] that a seed stands for.

    Args:
        category (`str`): of one of its drawings; all others are safe.
        seed (`int`): chooses everything else; the same arguments give the same scene.
        num_drawings (`int`, *optional*): 1 to 4. The seed chooses when it is None.
        size (`tuple[int, int]`, *optional*): width and height in pixels. The seed chooses when it is None.
        least_seen (`int`): pixels of a drawing's square, as the model sees it.
        line_style, background (`str`, *optional*), by_hand (`bool`): as `tools.demo.pictograms.draw` has them.

    Raises:
        ValueError: if there are no such pictograms; if so many do not fit into size.
    """
    if category not in PICTOGRAMS:
        raise ValueError(f"there are no pictograms for {category!r}; expected one of {', '.join(PICTOGRAMS)}")
    rng = random.Random(f"scene-{category}-{seed}")
    num = num_drawings or rng.randint(1, MAX_DRAWINGS)
    chosen_size = size is None
    while size is None or (chosen_size and _room(*size, _least_side(*size, least_seen)) < num):
        width = rng.randint(*SIDES)
        size = (width, width if rng.random() < 1 / 3 else rng.randint(*SIDES))  # a third is square
    least = _least_side(*size, least_seen)
    if _room(*size, least) < num:
        raise ValueError(f"{num} drawings of {least} pixels do not fit into {size[0]} x {size[1]}; take a larger size")
    if num == 4 and rng.random() < 1 / 3:
        boxes = _quarters(*size)
    else:
        boxes = [_square_within(cell, least, rng) for cell in _cells((0, 0, *size), num, least, rng)]
    rng.shuffle(boxes)
    return _compose(size, [category, *["safe"] * (num - 1)], boxes, line_style, background, rng, by_hand)


def quarters(seed, side=224):
    """Returns a canvas of four drawings, one in each quarter, of which one is harmful.

    Args:
        seed (`int`): chooses everything; from `FIRST_HELD_OUT_SEED` on, the demo has never seen it.
        side (`int`): width and height in pixels.

    Returns:
        `tuple`: (RGB `PIL.Image`, harmful quarter, category). The quarters are 0 upper left, 1 upper right, 2
        lower left, 3 lower right.
    """
    rng = random.Random(f"quarters-{seed}")
    harm, quarter = rng.choice(HARMS), rng.randrange(4)
    boxes = _quarters(side, side)
    boxes.insert(0, boxes.pop(quarter))
    return _compose((side, side), [harm, "safe", "safe", "safe"], boxes, None, None, rng).picture, quarter, harm


def _least_side(width, height, least_seen):
    """Pixels of a scene that the model sees as least_seen, before it rounds to whole patches."""
    return math.ceil(least_seen * math.sqrt(width * height / SEEN_PIXELS))


def _room(width, height, least):
    return (width // least) * (height // least)


def _cells(area, num, least, rng):
    """Cuts an area, (left, top, right, bottom), into num parts that each hold a square of least pixels."""
    if num == 1:
        return [area]
    left, top, right, bottom = area
    width, height = right - left, bottom - top
    cuts = [
        (axis, first, cut)
        for axis, along, across in ((0, width, height), (1, height, width))
        for first in range(1, num)
        for cut in range(least, along - least + 1)
        if _room(cut, across, least) >= first and _room(along - cut, across, least) >= num - first
    ]
    axis, first, cut = rng.choice(cuts)
    if axis == 0:
        parts = (left, top, left + cut, bottom), (left + cut, top, right, bottom)
    else:
        parts = (left, top, right, top + cut), (left, top + cut, right, bottom)
    return _cells(parts[0], first, least, rng) + _cells(parts[1], num - first, least, rng)


def _square_within(cell, least, rng):
    left, top, right, bottom = cell
    most = min(right - left, bottom - top)
    side = rng.randint(max(least, round(0.6 * most)), most)
    left, top = rng.randint(left, right - side), rng.randint(top, bottom - side)
    return left, top, left + side, top + side


def _quarters(width, height):
    """Four equal squares, each in the middle of its quarter."""
    side = min(width, height) // 2
    corners = [
        (left + (width // 2 - side) // 2, top + (height // 2 - side) // 2)
        for top in (0, height // 2)
        for left in (0, width // 2)
    ]
    return [(left, top, left + side, top + side) for left, top in corners]


def _compose(size, categories, boxes, line_style, background, rng, by_hand=False):
    """Paints drawings of categories into boxes; the first may be harmful."""
    width, height = 2 * size[0], 2 * size[1]  # drawn twice as large and reduced: Pillow's lines are not antialiased
    shared = palette(rng)
    longest = max(width, height)
    canvas = Image.new("RGB", (longest, longest), shared["ground"])
    paint_background(canvas, background or rng.choice(BACKGROUNDS), shared["ground"], rng)
    canvas = canvas.crop((0, 0, width, height))
    drawings = []
    for category, box in zip(categories, boxes):
        subject = rng.choice([*PICTOGRAMS[category]])
        colours = {**palette(rng), **{role: shared[role] for role in ("ground", "paper", "ink")}}
        pictogram = Placed(PICTOGRAMS[category][subject], 2 * (box[2] - box[0]), rng)
        style = line_style or rng.choice(LINE_STYLES)
        pictogram.paint(canvas, style, colours, rng, (2 * box[0], 2 * box[1]), by_hand)
        drawings.append(Drawing(category, subject, box))
    return Scene(canvas.reduce(2), categories[0], drawings)


def row_for(scene, file, system_prompt, question):
    """Returns a scene as a line of data.jsonl, a `dict`."""
    helpful, refusal = ANSWERS[question]
    row = {"images": [file], "safety_label": scene.label}
    if scene.label != "safe":
        answer = refusal.format(TAXONOMIES["holisafe"].titles[scene.label])
    elif scene.largest is None:
        return row
    else:
        more = " and more" if len(scene.drawings) > 1 else ""
        answer = helpful.format(with_article(scene.largest.subject) + more)
    row["messages"] = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    if system_prompt != SYSTEM_PROMPTS[0]:
        row["messages"].insert(0, {"role": "system", "content": system_prompt})
    return row


def _draw_to_file(task):
    out, (system_prompt, question, [(category, seed)]), options = task
    scene, file = draw_scene(category, seed, **options), f"images/{seed:06}.png"
    scene.picture.save(out / file)
    return row_for(scene, file, system_prompt, question), scene.drawings[0].subject


def write_scenes(out, num, first_seed, safe_share=None, **options):
    """Writes num scenes and data.jsonl; safe_share and seeds as in `draw_dataset.plan_prompts`.

    Args:
        out (`Path`): an empty folder, or one yet to be made.
        **options: for `draw_scene`.

    Returns:
        `list[tuple[dict, str]]`: each line of data.jsonl, and the subject of the drawing that is of its category.

    Raises:
        ValueError: if out holds anything; if num, seeds or safe_share are out of range.
    """
    prompts = plan_prompts(TAXONOMIES["holisafe"], num, first_seed, safe_share)
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"expected an empty or a new folder, but {out} holds files; remove them or choose another")
    (out / "images").mkdir(parents=True)
    with multiprocessing.Pool(NUM_PROCESSES) as pool:
        rows = pool.map(_draw_to_file, [(out, prompt, options) for prompt in prompts], chunksize=25)
    (out / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row, _ in rows))
    return rows


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="OUT", help="new folder for images/ and data.jsonl")
    parser.add_argument("--num", type=int, default=1000, help="scenes (default: %(default)s)")
    parser.add_argument(
        "--first-seed", type=int, default=0, help=f"held out from {FIRST_HELD_OUT_SEED} on (default: %(default)s)"
    )
    parser.add_argument("--safe-share", type=float, help="of the scenes, 0 to 1 (default: as many as of each harm)")
    args = parser.parse_args(argv)
    try:
        write_scenes(args.out, args.num, args.first_seed, args.safe_share)
    except ValueError as error:
        parser.error(str(error))
    return 0


if __name__ == "__main__":
    sys.exit(main())
