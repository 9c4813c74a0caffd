"""Near-identical pictures find each other, and others do not."""

import io

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from safeqwen.scan.similar import MAX_DISTANCE, near_identical, perceptual_hash
from tools.demo.pictograms import draw


def flipped(hash, bits):
    values = np.unpackbits(np.frombuffer(hash, np.uint8))
    values[list(bits)] ^= 1
    return np.packbits(values).tobytes()


def random_hashes(count, seed=0):
    return [bytes(one) for one in np.random.default_rng(seed).integers(0, 256, (count, 32), dtype=np.uint8)]


def test_groups_are_those_of_comparing_every_pair():
    hashes, rng = random_hashes(60), np.random.default_rng(1)
    for i in range(120):
        hashes.append(flipped(hashes[i % 60], rng.choice(256, int(rng.integers(1, 30)), replace=False)))
    bits = np.unpackbits(np.frombuffer(b"".join(hashes), np.uint8).reshape(-1, 32), axis=1)
    near = (bits[:, None] != bits[None]).sum(axis=2) <= MAX_DISTANCE
    expected = np.arange(len(hashes))
    for _ in hashes:  # the smallest index that can be reached
        expected = np.array([expected[row].min() for row in near])
    assert near_identical(hashes).tolist() == expected.tolist()
    assert 60 < len({*expected.tolist()}) < 180


def test_the_bound_is_exact_and_one_bit_more_is_another_picture():
    (hash,) = random_hashes(1)
    every_word = [16 * word for word in range(16)]
    assert near_identical([hash, flipped(hash, every_word[:15])]).tolist() == [0, 0]
    assert near_identical([hash, flipped(hash, every_word)]).tolist() == [0, 1]
    assert near_identical([hash, flipped(hash, range(16))]).tolist() == [0, 1]
    assert near_identical([]).tolist() == []


@pytest.mark.parametrize("category", ["safe", "suicide", "terrorism"])
def test_a_drawing_saved_sized_or_lit_anew_is_near_and_another_is_not(category):
    drawing = draw(category, 77, 224).convert("RGB")
    buffer = io.BytesIO()
    drawing.save(buffer, "JPEG", quality=40)
    near = [drawing, Image.open(buffer), drawing.resize((120, 120)), ImageEnhance.Brightness(drawing).enhance(1.05)]
    hashes = [perceptual_hash(one) for one in [*near, draw(category, 78, 224), draw(category, 79, 224)]]
    assert near_identical(hashes).tolist() == [0, 0, 0, 0, 4, 5]


def test_a_picture_of_one_colour_has_no_hash():
    assert perceptual_hash(Image.new("RGB", (50, 50), "red")) is None
