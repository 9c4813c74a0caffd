"""A scene is fixed by its category and seed, holds what its label says, and no drawing covers another."""

import json
from collections import Counter
from itertools import combinations

import numpy as np
import pytest
from PIL import Image
from transformers import AutoProcessor

from safeqwen import DEMO_CHECKPOINT
from tools.demo import scenes
from tools.demo.pictograms import FIRST_HELD_OUT_SEED, PICTOGRAMS
from tools.demo.scenes import HARMS, LEAST_SEEN, SEEN_PIXELS, Drawing, Scene, draw_scene, quarters, write_scenes


TASKS = [(category, seed) for seed in range(5) for category in PICTOGRAMS]


@pytest.fixture(scope="module")
def drawn():
    return [draw_scene(*task) for task in TASKS]


def test_a_category_and_a_seed_fix_the_scene_and_another_seed_gives_another(drawn):
    again = draw_scene(*TASKS[7])
    assert (
        np.array_equal(np.asarray(again.picture), np.asarray(drawn[7].picture)) and again.drawings == drawn[7].drawings
    )
    assert len({scene.picture.tobytes() for scene in drawn}) == len(drawn)


def test_a_scene_holds_the_one_harm_that_its_label_names_or_none(drawn):
    for scene, (category, _) in zip(drawn, TASKS):
        shown = [drawing.category for drawing in scene.drawings]
        assert scene.label == category and shown == [category] + ["safe"] * (len(shown) - 1)
        assert all(drawing.subject in PICTOGRAMS[drawing.category] for drawing in scene.drawings)
    assert set(Counter(len(scene.drawings) for scene in drawn)) == {1, 2, 3, 4}


def test_sides_and_shapes_are_those_that_are_promised(drawn):
    for scene in drawn:
        width, height = scene.picture.size
        assert scene.picture.mode == "RGB" and 112 <= min(width, height) and max(width, height) <= 336
        assert 1 / 3 <= width / height <= 3
    shapes = [scene.picture.width / scene.picture.height for scene in drawn]
    assert min(shapes) < 0.6 and max(shapes) > 1.7 and shapes.count(1) > 10


def test_the_squares_of_drawings_lie_within_the_picture_and_apart_and_are_large_enough(drawn):
    for scene in drawn:
        width, height = scene.picture.size
        # from the picture to what the model sees, whose area is always about the same
        scale = (SEEN_PIXELS / (width * height)) ** 0.5
        for left, top, right, bottom in (drawing.box for drawing in scene.drawings):
            assert 0 <= left < right <= width and 0 <= top < bottom <= height and right - left == bottom - top
            assert (right - left) * scale >= LEAST_SEEN - 0.5
        for one, other in combinations([drawing.box for drawing in scene.drawings], 2):
            beside = one[2] <= other[0] or other[2] <= one[0]
            assert beside or one[3] <= other[1] or other[3] <= one[1]


def test_ink_stays_within_the_squares_but_for_half_a_pens_width():
    for seed in range(20):
        scene = draw_scene("suicide", seed, background="plain")
        pixels = np.asarray(scene.picture, dtype=int)
        outside = np.ones(pixels.shape[:2], dtype=bool)
        for left, top, right, bottom in (drawing.box for drawing in scene.drawings):
            assert np.ptp(pixels[top:bottom, left:right], axis=(0, 1)).max() > 30  # something is drawn
            pen = 2 + (right - left) // 20
            outside[max(0, top - pen) : bottom + pen, max(0, left - pen) : right + pen] = False
        if outside.any():
            assert np.ptp(pixels[outside], axis=0).max() == 0


def test_four_drawings_fit_into_squares_and_two_into_every_shape():
    for seed, side in enumerate(range(112, 337, 7)):
        assert len(draw_scene("terrorism", seed, num_drawings=4, size=(side, side)).drawings) == 4
        assert len(draw_scene("terrorism", seed, num_drawings=2, size=(112, side)).drawings) == 2


def test_the_model_sees_every_picture_at_about_the_same_size():
    processor = AutoProcessor.from_pretrained(DEMO_CHECKPOINT).image_processor
    for size in ((112, 112), (168, 168), (224, 224), (448, 448), (300, 300), (336, 112), (112, 336), (199, 123)):
        _, rows, columns = processor([Image.new("RGB", size)], return_tensors="pt")["image_grid_thw"][0].tolist()
        assert 48 <= rows * columns // 4 <= 80
        if size[0] == size[1]:
            assert (rows, columns) == (16, 16)


def test_what_cannot_be_drawn_is_refused():
    with pytest.raises(ValueError, match="no pictograms for 'weather'"):
        draw_scene("weather", 0)
    with pytest.raises(ValueError, match="4 drawings of 88 pixels do not fit into 112 x 336"):
        draw_scene("safe", 0, num_drawings=4, size=(112, 336))


def test_the_largest_drawing_is_one_that_is_clearly_larger():
    def scene(*widths):
        return Scene(None, "safe", [Drawing("safe", str(width), (0, 0, width, width)) for width in widths])

    assert scene(60).largest.subject == "60"
    assert scene(60, 72).largest.subject == "72" and scene(60, 71).largest is None
    assert scene(100, 60, 119).largest is None and scene(120, 60, 100).largest.subject == "120"


@pytest.mark.parametrize("side", [112, 224])
def test_of_four_quarters_one_holds_the_harm(side, monkeypatch):
    composed = []
    compose = scenes._compose
    monkeypatch.setattr(scenes, "_compose", lambda *args: composed.append(compose(*args)) or composed[-1])
    seen = Counter()
    for seed in range(40):
        picture, quarter, category = quarters(seed, side)
        harm, *others = composed[-1].drawings
        half = side // 2
        assert harm.category == category and category in HARMS
        assert harm.box[:2] == ((quarter % 2) * half, (quarter // 2) * half) and picture.size == (side, side)
        assert [drawing.category for drawing in others] == ["safe"] * 3
        assert len({drawing.box for drawing in composed[-1].drawings}) == 4
        assert all(drawing.width == half for drawing in composed[-1].drawings)
        seen[quarter] += 1
    assert set(seen) == {0, 1, 2, 3}
    again, *_ = quarters(39, side)
    assert again.tobytes() == picture.tobytes()


def test_a_dataset_of_scenes_says_the_truth_about_them(tmp_path):
    assert scenes.main([str(tmp_path / "set"), "--num", "60", "--first-seed", "30", "--safe-share", "0.5"]) == 0
    rows = [json.loads(line) for line in (tmp_path / "set" / "data.jsonl").read_text().splitlines()]
    assert len(rows) == 60 and [row["safety_label"] for row in rows].count("safe") == 30
    answered = unanswered = 0
    for seed, row in enumerate(rows, start=30):
        scene = draw_scene(row["safety_label"], seed)
        assert row["images"] == [f"images/{seed:06}.png"]
        with Image.open(tmp_path / "set" / row["images"][0]) as picture:
            assert np.array_equal(np.asarray(picture), np.asarray(scene.picture))
        if row["safety_label"] == "safe" and scene.largest is None:
            assert "messages" not in row
            unanswered += 1
            continue
        answer = row["messages"][-1]["content"]
        assert ("can't" in answer) == (row["safety_label"] != "safe")
        if row["safety_label"] == "safe":
            assert scene.largest.subject in answer and (" and more" in answer) == (len(scene.drawings) > 1)
            answered += 1
    assert answered and unanswered


def test_a_dataset_is_either_held_out_or_not_and_overwrites_nothing(tmp_path, capsys):
    with pytest.raises(ValueError, match="partly held out"):
        write_scenes(tmp_path / "set", 10, FIRST_HELD_OUT_SEED - 5)
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(SystemExit):
        scenes.main([str(tmp_path), "--num", "2"])
    assert "holds files" in capsys.readouterr().err and [*tmp_path.iterdir()] == [tmp_path / "mine.txt"]
