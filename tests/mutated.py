"""Picture files that storage, networks and attackers broke: flipped bits, cut ends, spliced headers."""

import io
import random
from pathlib import Path

from tools.demo.pictograms import draw


# file suffix -> Pillow's format and options, in several kinds
KINDS = {
    "png": [("PNG", {}), ("PNG", {"compress_level": 0}), ("PNG", {"save_all": True})],
    "jpg": [("JPEG", {}), ("JPEG", {"progressive": True, "quality": 95}), ("JPEG", {"restart_marker_rows": 1})],
    "webp": [("WEBP", {}), ("WEBP", {"lossless": True}), ("WEBP", {"save_all": True})],
    "gif": [("GIF", {}), ("GIF", {"save_all": True})],
    "bmp": [("BMP", {})],
    "tif": [("TIFF", {}), ("TIFF", {"compression": "tiff_lzw"}), ("TIFF", {"save_all": True})],
}
MUTATIONS = ("flip", "flip-head", "cut-end", "cut-middle", "splice", "zeros")


def mutated_files(folder, count=500, seed=0):
    """
    Writes broken copies of drawings into a folder; the same count and seed give the same files.

    Returns:
        `list[Path]`: `<number>-<mutation>.<suffix>`, every mutation of every format equally often.
    """
    rng = random.Random(f"mutated-{seed}")
    bases = {suffix: [_encode(suffix, kind, rng) for kind in range(2 * len(KINDS[suffix]))] for suffix in KINDS}
    paths = []
    for number in range(count):
        suffix = list(KINDS)[number % len(KINDS)]
        mutation = MUTATIONS[number // len(KINDS) % len(MUTATIONS)]
        data = _mutate(mutation, rng.choice(bases[suffix]), rng.choice(bases[rng.choice(list(KINDS))]), rng)
        paths.append(Path(folder) / f"{number:03}-{mutation}.{suffix}")
        paths[-1].write_bytes(data)
    return paths


def _encode(suffix, kind, rng):
    format, options = KINDS[suffix][kind % len(KINDS[suffix])]
    frames = [draw(rng.choice(("safe", "terrorism", "suicide")), rng.randrange(1000), size=96) for _ in range(3)]
    if "save_all" in options:
        options = {**options, "append_images": frames[1:]}
    file = io.BytesIO()
    frames[0].save(file, format, **options)
    return file.getvalue()


def _mutate(mutation, data, other, rng):
    data = bytearray(data)
    if mutation in ("flip", "flip-head"):
        size = min(len(data), 80) if mutation == "flip-head" else len(data)
        for _ in range(rng.choice((1, 1, 4, 32))):
            data[rng.randrange(size)] ^= 1 << rng.randrange(8)
    elif mutation == "cut-end":
        del data[rng.choice((0, rng.randrange(64), rng.randrange(len(data)), len(data) - 1 - rng.randrange(64))) :]
    elif mutation == "cut-middle":
        start = rng.randrange(len(data))
        del data[start : start + 1 + rng.randrange(1000)]
    elif mutation == "splice":
        end = rng.choice((4, 8, 16, 32, 100, rng.randrange(len(data))))
        data = data[:end] + other[end:]
    else:
        start = rng.randrange(len(data))
        data[start : start + 100] = bytes(len(data[start : start + 100]))
    return bytes(data)
