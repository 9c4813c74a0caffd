"""Colours are those that browsers show: by cICP, an ICC profile, or a PNG's gAMA and cHRM."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms

from safeqwen.pictures import read_image


def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def shown(colour, *chunks, depth=8):
    """What is seen of a PNG of one colour with further chunks in its header."""
    row = b"\0" + struct.pack(">3B" if depth == 8 else ">3H", *colour) * 20
    body = chunk(b"IHDR", struct.pack(">IIBBBBB", 20, 20, depth, 2, 0, 0, 0)) + b"".join(chunks)
    data = b"\x89PNG\r\n\x1a\n" + body + chunk(b"IDAT", zlib.compress(row * 20)) + chunk(b"IEND", b"")
    (frame,) = read_image(data)
    return np.array(frame.getpixel((0, 0)))


def gamma(value):
    return chunk(b"gAMA", struct.pack(">I", round(value * 100_000)))


def primaries(*numbers):
    return chunk(b"cHRM", struct.pack(">8I", *(round(number * 100_000) for number in numbers)))


def cicp(primaries, transfer):
    return chunk(b"cICP", bytes([primaries, transfer, 0, 1]))


SRGB = (0.3127, 0.329, 0.64, 0.33, 0.3, 0.6, 0.15, 0.06)
DISPLAY_P3 = (0.3127, 0.329, 0.68, 0.32, 0.265, 0.69, 0.15, 0.06)


def test_a_png_of_linear_light_is_brightened():
    # half the light is sRGB's 188: 255 x (1.055 x 0.5 ^ (1 / 2.4) - 0.055)
    assert shown((128, 128, 128), gamma(1)).tolist() == [188, 188, 188]
    assert shown((32768,) * 3, gamma(1), depth=16).tolist() == [188, 188, 188]
    # with 0.5 it is the square, 0.252: 255 x (1.055 x 0.252 ^ (1 / 2.4) - 0.055)
    assert shown((128, 128, 128), gamma(0.5)).tolist() == [137, 137, 137]
    grey = chunk(b"IHDR", struct.pack(">IIBBBBB", 20, 20, 16, 0, 0, 0, 0))
    rows = zlib.compress((b"\0" + struct.pack(">H", 655) * 20) * 20)  # 0.01 of the light; its upper byte alone is 22
    data = b"\x89PNG\r\n\x1a\n" + grey + gamma(1) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    assert read_image(data)[0].getpixel((0, 0)) == (25, 25, 25)  # 255 x 0.0999


def test_gamma_holds_for_grey_and_palettes_and_frames_of_an_animation():
    grey = Image.new("L", (20, 20), 128)
    for picture, more in ((grey, []), (grey.convert("RGB").quantize(2), []), (grey, [Image.new("L", (20, 20), 0)])):
        file = io.BytesIO()
        picture.save(file, "PNG", save_all=True, append_images=more)
        data = file.getvalue()
        frames = read_image(data[:33] + gamma(1) + data[33:])  # behind the header
        assert [frame.getpixel((0, 0))[0] for frame in frames] == [188, 0][: 1 + len(more)]


def test_the_usual_gamma_and_the_srgb_chunk_change_nothing():
    for chunks in (
        [gamma(0.45455)],
        [gamma(0.45455), primaries(*SRGB)],
        [chunk(b"sRGB", b"\0"), gamma(1)],
        [gamma(0)],
    ):
        assert shown((10, 128, 250), *chunks).tolist() == [10, 128, 250]


def test_primaries_decide_what_red_is():
    red, green = SRGB[2:4], SRGB[4:6]
    swapped = (*SRGB[:2], *green, *red, *SRGB[6:])
    assert np.abs(shown((255, 0, 0), primaries(*swapped)) - [0, 255, 0]).max() <= 2
    # Display P3's green lies outside of sRGB, its grey does not
    assert shown((0, 128, 0), primaries(*DISPLAY_P3)).tolist()[::2] == [0, 0]
    assert shown((0, 128, 0), primaries(*DISPLAY_P3))[1] > 128
    assert np.abs(shown((128, 128, 128), primaries(*DISPLAY_P3)) - 128).max() <= 1
    # by hand: Display P3 to sRGB in linear light, red row 1.2249, -0.2247, 0; green -0.0420, 1.0419, 0 (CSS Color 4)
    light = 0.5 ** np.array([1, 1])  # of 188, 188, 0
    expected = np.array([1.2249, -0.0420]) * light[0] + np.array([-0.2247, 1.0419]) * light[1]
    encoded = 255 * (1.055 * expected ** (1 / 2.4) - 0.055)
    assert np.abs(shown((188, 188, 0), primaries(*DISPLAY_P3))[:2] - encoded).max() <= 2
    for broken in ([0] * 8, [0.3] * 8):
        assert shown((255, 0, 0), primaries(*broken)).tolist() == [255, 0, 0]


def test_cicp_wins_over_everything():
    assert shown((128, 128, 128), cicp(1, 8), chunk(b"sRGB", b"\0")).tolist() == [188, 188, 188]
    assert shown((128, 128, 128), cicp(1, 13), gamma(1)).tolist() == [128, 128, 128]
    swapped = np.abs(shown((0, 128, 0), cicp(12, 13)) - shown((0, 128, 0), primaries(*DISPLAY_P3)))
    assert swapped.max() <= 1


@pytest.mark.parametrize("transfer", [16, 18])
def test_hdr_keeps_every_step_from_black_to_white(transfer):
    levels = [shown((level,) * 3, cicp(9, transfer))[0] for level in range(0, 256, 15)]
    assert levels[0] == 0 and levels[-1] >= 254
    steps = np.diff(levels[levels.index(0) + 2 if transfer == 16 else 0 :])  # PQ's lowest steps are under one of 255
    assert min(steps) >= 1
    # a plain white, 203 nits (BT.2408: 58 % of PQ, 75 % of HLG), stays bright
    assert 180 < shown((round(255 * {16: 0.58, 18: 0.75}[transfer]),) * 3, cicp(9, transfer))[0] < 230


def test_an_icc_profile_wins_over_gamma():
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    icc = chunk(b"iCCP", b"sRGB\0\0" + zlib.compress(profile))
    assert shown((128, 128, 128), icc, gamma(1)).tolist() == [128, 128, 128]


def test_the_colours_of_an_avif_are_read_too():
    file = io.BytesIO()
    Image.new("RGB", (32, 32), (128, 128, 128)).save(file, "AVIF", quality=100)
    data = file.getvalue()
    start = data.index(b"colrnclx") + 8
    assert read_image(data)[0].getpixel((0, 0)) == (128, 128, 128)
    linear = data[: start + 2] + b"\0\x08" + data[start + 4 :]
    assert read_image(linear)[0].getpixel((0, 0)) == (188, 188, 188)
