"""A drawing is fixed by its category and seed, and stays apart from those that training sees."""

import hashlib
import itertools

import numpy as np
import pytest

from safeqwen import CATEGORIES
from tools.demo.pictograms import (
    BACKGROUNDS,
    HELD_OUT_BACKGROUND,
    HELD_OUT_LINE_STYLE,
    LINE_STYLES,
    PICTOGRAMS,
    draw,
    subject,
)


def test_every_category_has_a_family_and_every_subject_one_category():
    assert list(PICTOGRAMS) == [category.name for category in CATEGORIES]
    subjects = [name for family in PICTOGRAMS.values() for name in family]
    assert len(subjects) == len(set(subjects))
    assert len(PICTOGRAMS["safe"]) >= 12
    assert all(len(family) >= 2 for family in PICTOGRAMS.values())


def test_a_seed_fixes_the_drawing_and_another_gives_another():
    digests = {
        (name, seed): hashlib.sha256(draw(name, seed, size=64).tobytes()).hexdigest()
        for name, seed in itertools.product(PICTOGRAMS, (0, 1, 10**9))
    }
    assert len(set(digests.values())) == len(digests)
    for (name, seed), digest in list(digests.items())[::7]:
        assert hashlib.sha256(draw(name, seed, size=64).tobytes()).hexdigest() == digest
        assert subject(name, seed) in PICTOGRAMS[name]


def test_training_never_draws_the_held_out_style():
    assert HELD_OUT_LINE_STYLE not in LINE_STYLES and HELD_OUT_BACKGROUND not in BACKGROUNDS
    held_out = np.asarray(draw("suicide", 3, line_style=HELD_OUT_LINE_STYLE, background=HELD_OUT_BACKGROUND))
    for line_style, background in itertools.product(LINE_STYLES, BACKGROUNDS):
        drawing = np.asarray(draw("suicide", 3, line_style=line_style, background=background))
        assert (drawing != held_out).any(axis=-1).mean() > 0.02


def test_every_drawing_shows_something():
    for name, seed in itertools.product(PICTOGRAMS, range(3)):
        pixels = np.asarray(draw(name, seed, size=96, background="plain"), dtype=int)
        assert pixels.shape == (96, 96, 3)
        ground = pixels[0, 0]
        assert (abs(pixels - ground).sum(axis=-1) > 30).mean() > 0.01


@pytest.mark.parametrize("wrong", [{"line_style": "crayon"}, {"background": "clouds"}, {"category": "weather"}])
def test_unknown_names_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong.values()))):
        draw(**{"category": "safe", "seed": 0, **wrong})
