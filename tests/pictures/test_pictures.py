"""Every source of pictures gives what a person would see, or an error that names the file and the remedy."""

import base64
import contextlib
import http.server
import io
import os
import pickle
import struct
import subprocess
import sys
import threading
import time
import warnings
import zlib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
import torch
from mutated import mutated_files
from PIL import Image, ImageCms, ImageFile, ImageSequence
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

from safeqwen.pictures import MAX_FRAMES, UnreadableImage, read_image
from safeqwen.pictures import fetch as fetch_module
from tools.demo.pictograms import draw


DRAWING = draw("safe", seed=3, size=96)
SEVERAL = [draw("safe", seed, size=64) for seed in range(12)]
WHITE, BLACK, RED, GREEN = (255, 255, 255), (0, 0, 0), (255, 0, 0), (0, 255, 0)

LOSSLESS = [
    ("PNG", {}),
    ("WEBP", {"lossless": True}),
    ("BMP", {}),
    ("TIFF", {}),
    ("TIFF", {"compression": "tiff_lzw"}),
    ("PPM", {}),
]
ANIMATED = [(format, {"save_all": True}) for format in ("GIF", "PNG", "WEBP", "TIFF", "AVIF")]
LOSSY = [("JPEG", {}), ("JPEG", {"progressive": True}), ("WEBP", {}), ("AVIF", {}), ("GIF", {})]


@pytest.fixture(params=[False, True], ids=["strict", "load-truncated"])
def pillow_setting(request, monkeypatch):
    """Whether the user's process told Pillow to accept half pictures."""
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", request.param)


def encoded(picture, format="PNG", **options):
    file = io.BytesIO()
    picture.save(file, format, **options)
    return file.getvalue()


def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width, height, rows, depth=8, colour=2, before=b""):
    """A PNG with valid checksums around any data."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = chunk(b"IHDR", header) + before + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def pixel(frame, x=0, y=0):
    return frame.getpixel((x, y))


def refusal(source, **limits):
    """The message of the refusal, which is one line and ends with what to do."""
    with pytest.raises(UnreadableImage) as caught:
        read_image(source, **{"private_networks": True, **limits})
    message = str(caught.value)
    assert message.isprintable() and ";" in message
    return message


read_image_locally = partial(read_image, private_networks=True)


def assert_same_pixels(frames, *expected):
    assert [frame.mode for frame in frames] == ["RGB"] * len(expected)
    for frame, picture in zip(frames, expected, strict=True):
        np.testing.assert_array_equal(np.asarray(frame), np.asarray(picture))


# ------------------------------------------------------------------------------------------------------------- sources


def sources(folder):
    data = encoded(DRAWING)
    path = folder / "a drawing.png"
    path.write_bytes(data)
    text = base64.b64encode(data).decode()
    read_to_its_end = io.BytesIO(data)
    read_to_its_end.read()
    array = np.asarray(DRAWING)
    return {
        "str": str(path),
        "PathLike": path,
        "bytes": data,
        "bytearray": bytearray(data),
        "memoryview": memoryview(data),
        "BytesIO": read_to_its_end,
        "file": open(path, "rb"),
        "data URL": f"data:image/png;base64,{text}",
        "base64": text,
        "base64 in lines": base64.encodebytes(data).decode(),
        "PIL": DRAWING,
        "PIL, not decoded": Image.open(path),
        "array": array,
        "array, channels first": array.transpose(2, 0, 1),
        "array of floats": array / 255,
        "array of 16 bits": array.astype(np.uint16) * 257,
        "array of 16 bits, big end first": array.astype(">u2") * 257,
        "tensor": torch.tensor(array),
        "tensor, channels first": torch.tensor(array).permute(2, 0, 1).float() / 255,
        "tensor that learns": (torch.tensor(array).double() / 255).requires_grad_(),
        "dict of bytes": {"bytes": data, "path": None},
        "dict of both": {"bytes": data, "path": "gone.png"},
        "dict of a path": {"bytes": None, "path": str(path)},
    }


def test_every_kind_of_source_gives_the_same_pixels(tmp_path):
    for kind, source in sources(tmp_path).items():
        try:
            assert_same_pixels(read_image(source), DRAWING)
        except (AssertionError, UnreadableImage) as error:
            raise AssertionError(f"{kind}: {error}") from error


@pytest.mark.parametrize("format, options", LOSSLESS)
def test_lossless_formats_keep_their_pixels(format, options):
    assert_same_pixels(read_image(encoded(DRAWING, format, **options)), DRAWING)


@pytest.mark.parametrize("format, options", LOSSY)
def test_lossy_formats_give_what_pillow_decodes(format, options):
    data = encoded(DRAWING, format, **options)
    assert_same_pixels(read_image(data), Image.open(io.BytesIO(data)).convert("RGB"))


def test_the_content_counts_and_not_the_name(tmp_path):
    path = tmp_path / "photo.jpg"
    path.write_bytes(encoded(DRAWING))
    assert_same_pixels(read_image(path), DRAWING)


@pytest.mark.parametrize(
    "name, content, says",
    [
        ("empty.png", b"", "is empty (0 bytes)"),
        ("notes.png", b"no picture at all", "is none of the formats"),
        ("page.jpg", b"  <!DOCTYPE html><p>404", "web page"),
        ("icon.ico", encoded(DRAWING, "ICO"), "is none of the formats"),
        ("print.eps", encoded(DRAWING, "EPS"), "is none of the formats"),
        ("paper.pdf", encoded(DRAWING, "PDF"), "is none of the formats"),
        ("head.png", encoded(DRAWING)[:20], "ends before the picture does"),
        ("two\nlines\x1b[31m.png", b"", r"two\nlines\x1b[31m.png"),
    ],
)
def test_files_that_are_no_pictures_are_named_with_a_remedy(tmp_path, name, content, says):
    (tmp_path / name).write_bytes(content)
    message = refusal(tmp_path / name)
    assert says in message
    assert (tmp_path / name).stem.split("\n")[0] in message


def test_paths_that_cannot_be_read_are_named_with_a_remedy(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    assert refusal(tmp_path / "gone.png") == f"{tmp_path}/gone.png: there is no such file; check the path"
    assert refusal(str(tmp_path)) == f"{tmp_path}: is a folder; pass the pictures in it"
    assert "pass the path of a file" in refusal(tmp_path / "pipe.png")
    assert "pass the path of a file" in refusal("/dev/zero")
    assert "zero bytes" in refusal("a\0b.png")
    (tmp_path / "link.png").symlink_to(tmp_path / "gone.png")
    assert "link.png: there is no such file" in refusal(tmp_path / "link.png")


def test_a_file_of_another_user_is_refused_as_such(tmp_path):
    path = tmp_path / "private.png"
    path.write_bytes(encoded(DRAWING))
    path.chmod(0)
    read_end, write_end = os.pipe()
    if (child := os.fork()) == 0:
        with contextlib.suppress(BaseException):
            if os.geteuid() == 0:
                os.setuid(65534)
            try:
                read_image(path)
            except UnreadableImage as error:
                os.write(write_end, str(error).encode())
        os._exit(0)
    os.waitpid(child, 0)
    os.close(write_end)
    with open(read_end) as said:
        assert said.read().startswith(f"{path}: permission denied; let this user read the file")


@pytest.mark.parametrize(
    "source, says",
    [
        (b"12345", "<5 bytes>: is none of the formats"),
        (base64.b64encode(bytes(300)).decode(), "<base64 string of 400 characters>: is none of the formats"),
        ("x/" * 300 + "!", "<string of 601 characters>: there is no such file"),
        ("data:image/png;base64,not*base64", "<data URL of 32 characters>: is no valid base64"),
        ("data:text/plain;base64,aGVsbG8=", "expected data:image/"),
        ("file:///etc/passwd", "file:///etc/passwd: only http and https are fetched, not file; download the file and"),
        ("ftp://me:secret@host/a.png?key=secret", "ftp://host/a.png: only http and https"),
        ("s3://bucket/a.png", "pass the path itself"),
        (io.StringIO("text"), "gives text, not bytes"),
        ({"bytes": b"12345", "path": "shard/7.png"}, "shard/7.png: is none of the formats"),
        ({"bytes": None, "path": None}, 'neither "bytes" nor "path"'),
        ([DRAWING], "<list>: expected a path"),
        (None, "<NoneType>: expected a path"),
    ],
)
def test_sources_that_are_none_are_refused_without_echoing_them(source, says):
    message = refusal(source)
    assert says in message
    assert "secret" not in message


@pytest.mark.parametrize(
    "array, says",
    [
        (np.zeros((32, 32), np.int64), "convert it to uint8"),
        (np.full((32, 32, 3), 255.0), "[0, 1]"),
        (np.full((32, 32, 3), -0.01), "[0, 1]"),
        (np.full((32, 32, 3), np.nan), "[0, 1]"),
        (np.zeros((2, 32, 32, 3), np.uint8), "one by one"),
        (np.zeros((32, 32, 2), np.uint8), "(H, W, C)"),
        (np.zeros((3, 32, 3), np.uint8), "unclear"),
        (np.zeros((0, 32, 3), np.uint8), "empty"),
        (torch.zeros(3, 32, 32, dtype=torch.int32), "convert it to uint8"),
    ],
)
def test_arrays_without_one_meaning_are_refused(array, says):
    assert says in refusal(array)


RAMP = np.tile(np.arange(32), (32, 1))


@pytest.mark.parametrize(
    "array, remedy",
    [
        ((RAMP * 8).astype(np.uint16), "pass uint8 if they end at 255"),
        ((RAMP * 8).astype(">u2"), "pass uint8 if they end at 255"),
        ((RAMP * 132).astype(np.uint16), "multiply them by 16 if they have 12 bits"),  # to 4092
        ((RAMP > 15).astype(np.uint8), "multiply them by 255"),
        (torch.tensor(RAMP > 15).byte().expand(3, 32, 32), "multiply them by 255"),
        (RAMP / 31 / 255, "divided by 255 twice"),
        (
            np.dstack([RAMP * 8] * 3 + [np.ones_like(RAMP)]).astype(np.uint8),
            "multiply them by 255",
        ),  # alpha of 0 and 1
        (np.dstack([RAMP > 15] * 3 + [np.full_like(RAMP, 255)]).astype(np.uint8), "multiply them by 255"),
        (Image.fromarray((RAMP * 132).astype(np.uint16)), "multiply them by 16"),
    ],
)
def test_arrays_that_would_be_black_by_their_range_are_refused(array, remedy):
    message = refusal(array)
    assert remedy in message and "only, which is black" in message


def test_black_arrays_are_black_pictures():
    for dtype in (np.uint8, np.uint16, np.float32, bool):
        assert read_image(np.zeros((32, 32, 3), dtype))[0].getcolors() == [(1024, BLACK)]
    assert pixel(read_image((RAMP * 4097 // 31).astype(np.uint16))[0], 31) == (16, 16, 16)  # dark, and 16 bits
    assert pixel(read_image((RAMP > 15).astype(np.uint8) * 2)[0], 31) == (2, 2, 2)


def test_the_channels_of_an_array_are_red_green_and_blue():
    assert pixel(read_image(np.full((20, 20, 3), RED, np.uint8))[0]) == RED


@pytest.mark.parametrize(
    "alter", [lambda text: text.rstrip("="), lambda text: text.replace("+", "-").replace("/", "_")]
)
def test_base64_is_read_without_padding_and_in_the_alphabet_of_urls(alter):
    for padding in range(3):  # behind the end of the picture
        data = encoded(DRAWING) + bytes(padding)
        text = alter(base64.b64encode(data).decode())
        assert_same_pixels(read_image(text), DRAWING)
        assert_same_pixels(read_image(f"data:image/png;base64,{text}"), DRAWING)


def test_arrays_of_every_kind_keep_black_and_white():
    for array in (
        np.array([[False, True]]),
        np.array([[0, 255]], np.uint8),
        np.array([[0, 65535]], np.uint16),
        np.array([[0, 1]], np.float16),
        torch.tensor([[0.0, 1.0]], dtype=torch.bfloat16),
        torch.tensor([[False, True]]),
    ):
        big = array[[0] * 20][:, [0] * 20 + [1] * 20]
        for shaped in (big, big[..., None], big[None]):
            (frame,) = read_image(shaped)
            assert (pixel(frame), pixel(frame, 39)) == (BLACK, WHITE)


def test_refusals_survive_the_way_out_of_a_worker_process():
    error = UnreadableImage("a.png: is empty; get it anew")
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


# ------------------------------------------------------------------------------------------------------- half pictures


@pytest.mark.parametrize("format, options", [*LOSSLESS, *LOSSY, *ANIMATED])
def test_a_file_cut_anywhere_is_refused(format, options, pillow_setting):
    if "save_all" in options:
        options = {**options, "append_images": SEVERAL[1:4]}
    data = encoded(SEVERAL[0], format, **options)
    whole = read_image(data)
    assert len(whole) == (4 if "save_all" in options else 1)
    for length in range(0, len(data) - 4, len(data) // 60):
        refusal(data[:length])
    for length in range(len(data) - 4, len(data)):  # a TIFF may end in padding
        with contextlib.suppress(UnreadableImage):
            assert_same_pixels(read_image(data[:length]), *whole)
            assert format == "TIFF"


def test_a_cut_file_that_the_user_opened_is_refused(pillow_setting):
    for format in ("PNG", "JPEG", "BMP"):
        data = encoded(DRAWING, format)
        assert_same_pixels(read_image(Image.open(io.BytesIO(data))), *read_image(data))
        refusal(Image.open(io.BytesIO(data[: len(data) * 2 // 3])))


def test_a_tiff_cut_among_its_directories_does_not_lose_pages(pillow_setting):
    data = tiff_of(3)
    assert len(read_image(data)) == 3
    for length in range(len(data)):
        refusal(data[:length])


def test_a_png_whose_data_stop_halfway_behind_valid_checksums_is_refused(pillow_setting):
    rows = b"".join(b"\0" + row.tobytes() for row in np.asarray(DRAWING))
    assert_same_pixels(read_image(png(96, 96, rows)), DRAWING)
    half = png(96, 96, rows[: len(rows) // 2])
    assert Image.open(io.BytesIO(half)).convert("RGB").getpixel((95, 95)) == BLACK  # what Pillow makes of it
    assert "ends before the picture does" in refusal(half)


def test_an_interlaced_png_is_whole_only_with_all_its_passes():
    # Adam7 on 16 x 16 of one byte a pixel: 2x2, 2x2, 4x2, 4x4, 8x4, 8x8, 16x8 pixels and a byte a row
    sizes = ((2, 2), (2, 2), (4, 2), (4, 4), (8, 4), (8, 8), (16, 8))
    rows = b"".join((b"\0" + b"\x80" * width) * height for width, height in sizes)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 16, 16, 8, 0, 0, 0, 1))
    for missing in (0, 1):
        body = chunk(b"IDAT", zlib.compress(rows[: len(rows) - missing])) + chunk(b"IEND", b"")
        data = b"\x89PNG\r\n\x1a\n" + header + body
        if missing:
            assert "ends before" in refusal(data)
        else:
            assert pixel(read_image(data)[0], 15, 15) == (128, 128, 128)


def test_a_fourth_channel_of_a_tiff_that_is_not_alpha_hides_nothing():
    data = bytearray(encoded(rgba(RED, 0), "TIFF"))
    entry = data.index(struct.pack("<HHI", 338, 3, 1)) + 8
    assert pixel(read_image(bytes(data))[0]) == WHITE  # 2: alpha
    data[entry] = 0
    assert pixel(read_image(bytes(data))[0]) == RED


def test_damage_is_told_by_the_error_alone(capfd):
    data = encoded(DRAWING, "JPEG")
    refusal(data[:400] + data[500:])
    assert capfd.readouterr() == ("", "")


def test_a_png_with_a_damaged_second_half_is_refused(pillow_setting):
    data = bytearray(encoded(DRAWING))
    data[-30] ^= 1
    assert "checksum" in refusal(bytes(data))


def test_a_damaged_later_frame_refuses_the_animation(pillow_setting):
    for format in ("GIF", "PNG"):
        data = encoded(SEVERAL[0], format, save_all=True, append_images=SEVERAL[1:6])
        start = len(data) * 2 // 3
        refusal(data[:start] + bytes(200) + data[start + 200 :])


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_rows": 1}])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_jpeg_that_stops_halfway_before_a_valid_end_is_refused(mode, options, pillow_setting):
    data = encoded(draw("safe", seed=3).convert(mode), "JPEG", **options)
    assert len(read_image(data)) == 1
    start = data.rindex(b"\xff\xda") if not options.get("progressive") else data.index(b"\xff\xda")
    assert "ends before the picture does" in refusal(data[: start + 300] + b"\xff\xd9")


def test_a_jpeg_as_grey_as_missing_data_is_a_picture():
    for mode in ("L", "RGB"):
        data = encoded(Image.new("L", (64, 64), 128).convert(mode), "JPEG")
        assert pixel(read_image(data)[0], 63, 63) == (128, 128, 128)


def test_the_thumbnail_of_a_cut_jpeg_is_not_its_end(pillow_setting):
    thumbnail = encoded(DRAWING.resize((32, 32)), "JPEG")
    data = encoded(DRAWING, "JPEG", exif=b"Exif\0\0" + thumbnail)
    assert len(read_image(data)) == 1
    refusal(data[:-2])


def test_a_tiff_with_strips_for_half_of_its_rows_is_refused(pillow_setting):
    data = bytearray(encoded(DRAWING, "TIFF"))
    entry = data.index(struct.pack("<HHI", 278, 4, 1))
    data[entry + 8 : entry + 12] = struct.pack("<I", 48)  # rows per strip, with one strip
    assert "only a part" in refusal(bytes(data))


def test_what_follows_the_end_of_a_picture_is_not_seen():
    for format in ("JPEG", "PNG", "GIF"):
        data = encoded(SEVERAL[0], format)
        assert_same_pixels(read_image(data + encoded(SEVERAL[1], format)), *read_image(data))


# -------------------------------------------------------------------------------------------------------------- limits


def test_a_decompression_bomb_is_refused_by_its_header(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)  # a user's, that must not lift ours
    claims = png(100_000, 100_000, b"")
    assert "100000 x 100000 pixels, over the limit of 178956970; shrink" in refusal(claims)
    assert "over the limit of 9215" in refusal(DRAWING, max_pixels=96 * 96 - 1)
    assert len(read_image(DRAWING, max_pixels=96 * 96)) == 1


def test_a_user_may_lower_pillows_own_limit(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4000)
    assert "raise PIL.Image.MAX_IMAGE_PIXELS" in refusal(encoded(DRAWING))


def test_compressed_text_does_not_fill_the_memory():
    bomb = chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(100 * 2**20), 9))
    assert "MAX_TEXT_CHUNK" in refusal(png(16, 16, bytes(49 * 16), before=bomb))


def test_surplus_data_in_a_png_are_not_inflated():
    start = time.monotonic()
    compressor = zlib.compressobj(9)
    stream = compressor.compress(bytes(49 * 16))
    stream += b"".join(compressor.compress(bytes(2**20)) for _ in range(200)) + compressor.flush()
    built = time.monotonic() - start
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 16, 16, 8, 2, 0, 0, 0))
    start = time.monotonic()
    assert len(read_image(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", stream) + chunk(b"IEND", b""))) == 1
    assert time.monotonic() - start < built / 4


def test_a_jpeg_of_very_many_scans_is_refused_before_it_is_decoded():
    data = encoded(Image.new("L", (2000, 2000)), "JPEG", progressive=True)
    start = data.rindex(b"\xff\xda")
    scan, end = data[start:-2], data[-2:]
    assert len(read_image(data)) == 1
    many = data[:start] + scan * 3000 + end
    before = time.monotonic()
    assert "has over 64 scans" in refusal(many)
    assert time.monotonic() - before < 1
    # those of a thumbnail and of what follows the picture do not count
    thumbnail = b"\xff\xe1" + struct.pack(">H", 302) + b"\xff\xda\0" * 100
    assert len(read_image(data[:2] + thumbnail + data[2:] + b"\xff\xda\0" * 100)) == 1


def gif_of(frames, width=20, height=20):
    """A GIF of `frames` frames of one pixel each."""
    head = b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + bytes([*RED, *WHITE])
    frame = b"\x2c" + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\x02\x02\x44\x01\0"
    return head + frame * frames + b"\x3b"


def tiff_of(pages):
    """A TIFF of `pages` pages that share one strip."""
    strip, entries = 8, [(256, 20), (257, 20), (258, 8), (259, 1), (262, 1), (273, 8), (277, 1), (278, 20), (279, 400)]
    size = 2 + 12 * len(entries) + 4
    data = b"II*\0" + struct.pack("<I", strip + 400) + bytes(400)
    for page in range(pages):
        data += struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", tag, 4, 1, v) for tag, v in entries)
        data += struct.pack("<I", strip + 400 + (page + 1) * size if page + 1 < pages else 0)
    return data


@pytest.mark.parametrize("build", [gif_of, tiff_of])
def test_files_of_very_many_frames_do_not_hold_up_the_rest(build):
    assert len(read_image(build(1000))) == MAX_FRAMES
    data = build(20_000)
    start = time.monotonic()
    assert "over 10000" in refusal(data)
    assert time.monotonic() - start < 10


def test_an_animation_is_refused_if_its_frames_exceed_the_pixels_allowed():
    data = encoded(SEVERAL[0], "GIF", save_all=True, append_images=SEVERAL[1:])
    assert len(read_image(data, max_pixels=8 * 64 * 64)) == 8
    assert "12 frames of 64 x 64 pixels are too much" in refusal(data, max_pixels=8 * 64 * 64 - 1)
    assert "too much" in refusal(gif_of(1000, 300, 300), max_pixels=2_000_000)  # 90 megapixels to reach the last


def test_a_gif_that_grows_behind_its_header_is_measured_anew():
    data = gif_of(2).replace(struct.pack("<HHHHB", 0, 0, 1, 1, 0), struct.pack("<HHHHB", 60000, 0, 1, 1, 0))
    assert "pixels" in refusal(data)


def test_encodings_that_pillow_decodes_in_python_are_limited():
    assert "in a slow encoding" in refusal(b"P3 2000 2000 255\n" + b"1 " * 100)
    rle = bytearray(encoded(Image.new("P", (2000, 2000)), "BMP"))
    rle[30:34] = struct.pack("<I", 1)
    assert "in a slow encoding" in refusal(bytes(rle))


def test_files_over_max_bytes_are_refused_wherever_they_come_from(tmp_path):
    for kind, source in sources(tmp_path).items():
        if not kind.startswith(("array", "tensor")) and kind != "PIL":
            assert "larger than 500 bytes" in refusal(source, max_bytes=500)


@pytest.mark.parametrize("width, height", [(14, 14), (14, 2800), (2800, 14), (300, 1000)])
def test_sizes_that_are_read_suit_the_stock_processor(width, height):
    assert read_image(Image.new("RGB", (width, height)))[0].size == (width, height)
    assert min(smart_resize(height, width)) >= 28


def test_shapes_that_the_stock_processor_refuses_are_refused_with_the_name(tmp_path):
    Image.new("RGB", (2815, 14)).save(tmp_path / "strip.png")
    with pytest.raises(ValueError, match="aspect ratio"):
        smart_resize(14, 2815)
    assert "strip.png: is 2815 x 14 pixels, a ratio over 200; cut the picture" in refusal(tmp_path / "strip.png")
    Image.new("RGB", (13, 200)).save(tmp_path / "small.png")
    assert "small.png: is 13 x 200 pixels, too small" in refusal(tmp_path / "small.png")


# ---------------------------------------------------------------------------------------------------- as a person sees


UPRIGHT = np.asarray(DRAWING.resize((48, 32)))
# How the rows and columns of the file lie for each value of the tag (EXIF 2.3, table of Orientation).
STORED = {
    1: UPRIGHT,
    2: UPRIGHT[:, ::-1],
    3: UPRIGHT[::-1, ::-1],
    4: UPRIGHT[::-1],
    5: UPRIGHT.transpose(1, 0, 2),
    6: UPRIGHT.transpose(1, 0, 2)[::-1],
    7: UPRIGHT.transpose(1, 0, 2)[::-1, ::-1],
    8: UPRIGHT.transpose(1, 0, 2)[:, ::-1],
}


@pytest.mark.parametrize("format", ["PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", STORED)
def test_a_turned_camera_gives_an_upright_picture(format, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if format == "WEBP" else {}
    data = encoded(Image.fromarray(STORED[orientation]), format, exif=exif, **options)
    for source in (data, Image.open(io.BytesIO(data))):
        frames = read_image(source)
        assert_same_pixels(frames, UPRIGHT)
        assert 0x0112 not in frames[0].getexif()  # nobody turns it again


def test_a_jpeg_is_turned_and_broken_exif_leaves_it_as_it_lies():
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = Image.fromarray(STORED[6])
    (frame,) = read_image(encoded(picture, "JPEG", exif=exif, quality=100, subsampling=0))
    assert np.abs(np.asarray(frame).astype(int) - UPRIGHT).max() < 24 and frame.size == (48, 32)
    (frame,) = read_image(encoded(picture, "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff"))
    assert frame.size == picture.size


def on_white(source):
    return read_image(source)[0]


def rgba(colour, alpha, shape=(20, 20)):
    picture = Image.new("RGBA", shape, (*colour, 0))
    picture.paste((*colour, alpha), (0, 0, 10, 20))
    return picture


def test_transparency_lies_on_white_paper():
    for picture in (rgba(RED, 255), encoded(rgba(RED, 255)), encoded(rgba(RED, 255), "WEBP", lossless=True)):
        frame = on_white(picture)
        assert (pixel(frame), pixel(frame, 19)) == (RED, WHITE)
    assert pixel(on_white(rgba(BLACK, 51))) == (204, 204, 204)  # 0.2 x 0 + 0.8 x 255
    assert pixel(on_white(np.asarray(rgba(BLACK, 51)))) == (204, 204, 204)
    grey = rgba(BLACK, 51).convert("LA")
    assert pixel(on_white(encoded(grey))) == pixel(on_white(grey.convert("La"))) == (204, 204, 204)
    assert pixel(on_white(rgba(BLACK, 51).convert("RGBa"))) == (204, 204, 204)


def test_a_white_drawing_on_transparency_lies_on_black():
    for mark in (None, BLACK, (128, 128, 128)):  # one pixel that shows on white must not make it a blank page
        picture = rgba(WHITE, 255, shape=(60, 60))
        if mark:
            picture.putpixel((40, 40), (*mark, 255))
        white, black = read_image(encoded(picture))
        assert (pixel(black), pixel(black, 19)) == (WHITE, BLACK)
        (frame,) = read_image(encoded(picture), one_paper=True)
        assert_same_pixels([frame], black)
    assert on_white(encoded(rgba(WHITE, 0))).getcolors() == [(400, WHITE)]


TRANSPARENT = {
    "RGBA png": lambda: encoded(rgba(RED, 255)),
    "LA png": lambda: encoded(rgba((100, 100, 100), 255).convert("LA")),
    "palette": lambda: encoded(rgba(RED, 255).quantize(4)),
    "tRNS": lambda: png(16, 16, (b"\0" + b"\x55\x55\0\0") * 16, 2, 0, before=chunk(b"tRNS", b"\0\x01")),
    "WebP": lambda: encoded(rgba(RED, 255), "WEBP"),
    "AVIF": lambda: encoded(rgba(RED, 255), "AVIF"),
    "GIF": lambda: encoded(rgba(RED, 255), "GIF"),
    "TIFF": lambda: encoded(rgba(RED, 255), "TIFF"),
    "PIL": lambda: rgba(RED, 255),
    "array": lambda: np.asarray(rgba(RED, 255)),
}


@pytest.mark.parametrize("kind", TRANSPARENT)
def test_what_may_lie_on_white_or_black_is_seen_on_both(kind):
    white, black = read_image(TRANSPARENT[kind]())
    corners = [(pixel(white, x, y), pixel(black, x, y)) for x in (1, white.width - 2) for y in (1, white.height - 2)]
    assert (WHITE, BLACK) in corners  # the paper
    assert any(first == second or kind == "tRNS" for first, second in corners)  # the drawing
    (alone,) = read_image(TRANSPARENT[kind](), one_paper=True)
    assert_same_pixels([alone], white)


def test_each_frame_of_a_transparent_animation_has_its_two_views():
    frames = [rgba(colour, 255) for colour in (RED, GREEN)]
    for format in ("PNG", "WEBP", "GIF"):
        options = {"lossless": True} if format == "WEBP" else {}
        data = encoded(frames[0], format, save_all=True, append_images=frames[1:], **options)
        expected = [(RED, WHITE), (RED, BLACK), (GREEN, WHITE), (GREEN, BLACK)]
        assert [(pixel(view), pixel(view, 19)) for view in read_image(data)] == expected
        assert len(read_image(data, one_paper=True)) == 2


def test_transparency_that_nobody_sees_makes_no_second_view():
    assert len(read_image(rgba(RED, 255).convert("RGB").convert("RGBA"))) == 1
    assert len(read_image(Image.new("RGBA", (20, 20), (*RED, 248)))) == 1  # 7 of 255
    assert len(read_image(Image.new("RGBA", (20, 20), (*RED, 247)))) == 2


def test_palettes_with_transparent_colours_lie_on_white():
    picture = Image.new("P", (20, 20), 1)
    picture.putpalette([*RED, *GREEN, *BLACK])
    picture.paste(0, (0, 0, 10, 20))
    for format in ("PNG", "GIF"):
        assert pixel(on_white(encoded(picture, format))) == RED
        assert pixel(on_white(encoded(picture, format, transparency=0))) == WHITE
    frame = on_white(encoded(picture, "PNG", transparency=bytes([51, 255])))
    assert (pixel(frame), pixel(frame, 19)) == ((255, 204, 204), GREEN)


def test_the_one_transparent_colour_of_a_png_is_found_at_every_depth():
    def columns(first, second, depth, colour, transparent):
        row = b"\0" + first * 8 + second * 8
        return png(16, 16, row * 16, depth, colour, before=chunk(b"tRNS", transparent))

    two_bits = png(16, 16, (b"\0" + b"\x55\x55\0\0") * 16, 2, 0, before=chunk(b"tRNS", b"\0\x01"))
    four_bits = png(16, 16, (b"\0" + b"\x77" * 4 + b"\0" * 4) * 16, 4, 0, before=chunk(b"tRNS", b"\0\x07"))
    grey = columns(b"\x12\x34", b"\0\0", 16, 0, b"\x12\x34")
    colours = columns(bytes([0x90, 1, 0x80, 2, 0x70, 3]), bytes(6), 16, 2, bytes([0x90, 1, 0x80, 2, 0x70, 3]))
    for data in (two_bits, four_bits, grey, colours):
        frame = on_white(data)
        assert (pixel(frame), pixel(frame, 15)) == (WHITE, BLACK)


def test_sixteen_bit_greys_span_black_to_white():
    ramp = np.repeat(np.array([[0, 16384, 32768, 49152, 65535]], np.uint16), 20, 0).repeat(4, 1)
    picture = Image.fromarray(ramp)
    big_end_first = Image.frombytes("I;16B", picture.size, ramp.astype(">u2").tobytes())
    for source in (
        encoded(picture),
        encoded(picture, "TIFF"),
        encoded(picture, "TIFF", compression="tiff_lzw"),
        encoded(big_end_first, "TIFF"),
        encoded(picture, "PPM"),
        picture,
        big_end_first,
        ramp,
    ):
        (frame,) = read_image(source)
        assert [pixel(frame, x)[0] for x in (0, 4, 8, 12, 16)] == [0, 64, 128, 192, 255]


@pytest.mark.parametrize("mode, shade", [("L", 40), ("I;16", 40 * 257)])
def test_a_tiff_where_white_is_zero_is_not_its_own_negative(mode, shade):
    data = bytearray(encoded(Image.new(mode, (20, 20), shade), "TIFF"))
    data[data.index(struct.pack("<HHI", 262, 3, 1)) + 8] = 0
    assert pixel(read_image(bytes(data))[0]) == (215, 215, 215)


@pytest.mark.parametrize("mode", ["F", "I"])
def test_samples_without_an_agreed_range_are_refused(mode):
    picture = Image.new(mode, (20, 20), 1)
    for source in (picture, encoded(picture, "TIFF")):
        assert "scale them to 8 bits" in refusal(source)


def test_colours_come_out_of_every_colour_space():
    cmyk = Image.new("CMYK", (20, 20), (0, 255, 255, 0))  # no cyan, full magenta and yellow: red
    for source in (cmyk, encoded(cmyk, "TIFF")):
        assert pixel(read_image(source)[0]) == RED
    inverted = encoded(cmyk, "JPEG")  # as Adobe does
    assert b"Adobe" in inverted
    assert np.abs(np.subtract(pixel(read_image(inverted)[0]), RED)).max() < 5
    lab = Image.new("LAB", (20, 20), (255, 128, 128))  # full lightness, no colour
    assert min(pixel(read_image(encoded(lab, "TIFF"))[0])) >= 254
    assert pixel(read_image(Image.new("YCbCr", (20, 20), (76, 85, 255)))[0])[0] > 250
    assert pixel(read_image(Image.new("1", (20, 20), 1))[0]) == WHITE
    assert pixel(read_image(encoded(Image.new("1", (20, 20), 1)))[0]) == WHITE


def test_an_icc_profile_decides_what_red_is():
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    swapped = srgb.replace(b"rXYZ", b"????").replace(b"gXYZ", b"rXYZ").replace(b"????", b"gXYZ")
    red = Image.new("RGB", (20, 20), RED)
    assert np.abs(np.subtract(pixel(read_image(encoded(red, icc_profile=swapped))[0]), GREEN)).max() <= 1
    assert pixel(read_image(encoded(red, icc_profile=b"no profile"))[0]) == RED
    assert_same_pixels(read_image(encoded(DRAWING, icc_profile=srgb)), DRAWING)


# ---------------------------------------------------------------------------------------------------------- animations


@pytest.mark.parametrize("format", ["GIF", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize(
    "count, chosen",
    [
        (2, [0, 1]),
        (8, [0, 1, 2, 3, 4, 5, 6, 7]),
        (9, [0, 1, 2, 3, 5, 6, 7, 8]),  # steps of 8/7
        (12, [0, 2, 3, 5, 6, 8, 9, 11]),  # steps of 11/7
    ],
)
def test_an_animation_is_eight_frames_from_the_first_to_the_last(format, count, chosen):
    options = {"lossless": True} if format == "WEBP" else {}
    data = encoded(SEVERAL[0], format, save_all=True, append_images=SEVERAL[1:count], **options)
    by_pillow = [frame.convert("RGB") for frame in ImageSequence.Iterator(Image.open(io.BytesIO(data)))]
    assert len(by_pillow) == count
    assert_same_pixels(read_image(data), *(by_pillow[index] for index in chosen))


def test_a_pil_animation_is_seen_whole_from_its_first_frame_and_alone_from_a_later_one():
    data = encoded(SEVERAL[0], "GIF", save_all=True, append_images=SEVERAL[1:4])
    picture = Image.open(io.BytesIO(data))
    expected = read_image(data)
    assert_same_pixels(read_image(picture), *expected)
    picture.load()
    assert_same_pixels(read_image(picture), *expected)
    picture.seek(2)
    assert_same_pixels(read_image(picture), expected[2])
    assert picture.tell() == 2
    picture.seek(0)
    assert_same_pixels(read_image(picture.copy()), expected[0])
    picture.close()
    assert "pass the path" in refusal(picture)


def test_a_picture_opened_from_postscript_runs_nothing():
    assert "is none of the formats" in refusal(Image.open(io.BytesIO(encoded(DRAWING, "EPS"))))


def test_a_multi_picture_jpeg_is_its_first_picture():
    data = encoded(SEVERAL[0], "MPO", save_all=True, append_images=SEVERAL[1:3])
    assert Image.open(io.BytesIO(data)).n_frames == 3
    assert_same_pixels(read_image(data), Image.open(io.BytesIO(data)).convert("RGB"))


# ----------------------------------------------------------------------------------------------------------------- web


class Answers(http.server.BaseHTTPRequestHandler):
    """A server that answers as its worst."""

    protocol_version = "HTTP/1.0"
    seen = []

    def log_message(self, *args):
        pass

    def do_GET(self):
        self.seen.append((self.path, self.headers.get("Authorization")))
        with contextlib.suppress(OSError):
            getattr(self, self.path.strip("/").partition("?")[0].partition(".")[0] or "missing", self.missing)()

    def begin(self, status=200, **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()

    def picture(self):
        self.begin()
        self.wfile.write(encoded(DRAWING))

    def missing(self):
        self.begin(404)

    def broken(self):
        self.begin(500)

    def page(self):
        self.begin()
        self.wfile.write(b"<html>please log in</html>")

    def nothing(self):
        self.begin()

    def short(self):
        data = encoded(DRAWING)
        self.begin(Content_Length=str(len(data) + 1))
        self.wfile.write(data)

    def huge(self):
        self.begin(Content_Length=str(10**12))

    def endless(self):
        self.begin()
        while True:
            self.wfile.write(bytes(2**16))

    def drip(self):
        self.begin()
        self.drip_headers()

    def drip_headers(self):
        while True:
            self.wfile.write(b"x")
            self.wfile.flush()
            time.sleep(0.05)

    def silent(self):
        time.sleep(1.5)

    def moved(self):
        self.begin(302, Location="/picture")

    def elsewhere(self):
        self.begin(302, Location=f"http://localhost:{self.server.server_address[1]}/picture")

    def circle(self):
        self.begin(302, Location="/circle")

    def to_file(self):
        self.begin(302, Location="file:///etc/passwd?secret")

    def to_ftp(self):
        self.begin(302, Location="ftp://localhost/secret")


@pytest.fixture
def server(monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    Answers.seen.clear()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        server.block_on_close = False
        yield f"127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("path", ["picture", "moved", "elsewhere", "picture?key=a b", "picture.png#part"])
def test_a_url_gives_the_picture_it_leads_to(server, path):
    assert_same_pixels(read_image_locally(f"http://{server}/{path}"), DRAWING)
    assert_same_pixels(read_image_locally({"bytes": None, "path": f"HTTP://{server}/{path}"}), DRAWING)


@pytest.mark.parametrize(
    "path, says",
    [
        ("gone", "the server answered 404 Not Found"),
        ("broken", "the server answered 500 Internal Server Error"),
        ("page", "is a web page"),
        ("nothing", "is empty"),
        ("short", "ends early"),
        ("circle", "redirects more than 5 times, or not to http(s)"),
        ("to_file", "redirects more than 5 times, or not to http(s)"),
        ("to_ftp", "redirects more than 5 times, or not to http(s)"),
        ("huge", "is larger than 100000 bytes"),
        ("endless", "is larger than 100000 bytes"),
        ("drip", "gave no whole picture within 0.4 s"),
        ("drip_headers", "gave no whole picture within 0.4 s"),
        ("silent", "gave no whole picture within 0.4 s"),
    ],
)
def test_a_url_that_gives_no_picture_is_named_without_its_secrets(server, path, says):
    start = time.monotonic()
    message = refusal(f"http://me:secret@{server}/{path}?key=secret#secret", timeout_s=0.4, max_bytes=100_000)
    assert time.monotonic() - start < 5
    assert says in message and message.startswith(f"http://{server}/{path}: ")
    assert "secret" not in message


def test_an_endless_answer_is_cut_off_by_time_too(server):
    start = time.monotonic()
    assert "within 0.3 s" in refusal(f"http://{server}/endless", timeout_s=0.3, max_bytes=2**40)
    assert time.monotonic() - start < 5


def test_downloads_that_were_given_up_end(server):
    for path in ("drip", "drip_headers", "endless"):
        refusal(f"http://{server}/{path}", timeout_s=0.3, max_bytes=2**40)
    for thread in threading.enumerate():
        if isinstance(thread, fetch_module._Download):
            thread.join(5)
            assert not thread.is_alive()


def test_unreachable_addresses_say_so(server, monkeypatch):
    with http.server.HTTPServer(("127.0.0.1", 0), Answers) as closed:
        port = closed.server_address[1]
    assert "Connection refused" in refusal(f"http://127.0.0.1:{port}/a.png")
    assert "http://nowhere.invalid/a.png: " in refusal("http://nowhere.invalid/a.png", timeout_s=5)
    for url in (
        "http://",
        "http:///a.png",
        "http://me:se/cret@host:x/a.png",
        "http://[::1/a.png",
        "https://host:99999/a",
    ):
        message = refusal(url)
        assert "is not valid" in message and "cret" not in message


def test_a_password_goes_to_its_own_server_only(server):
    assert_same_pixels(read_image_locally(f"http://me:pass%20word@{server}/elsewhere"), DRAWING)
    token = "Basic " + base64.b64encode(b"me:pass word").decode()
    assert Answers.seen == [("/elsewhere", token), ("/picture", None)]


def test_the_proxy_of_the_environment_is_asked(server, monkeypatch):
    monkeypatch.setenv("http_proxy", f"http://{server}")
    monkeypatch.setattr(Answers, "missing", Answers.picture)
    assert_same_pixels(read_image_locally("http://nowhere.invalid/picture"), DRAWING)
    assert Answers.seen == [("http://nowhere.invalid/picture", None)]


# ------------------------------------------------------------------------------------------------ threads and warnings


def test_threads_do_not_meet():
    files = [encoded(frame, "GIF", save_all=True, append_images=SEVERAL) for frame in SEVERAL]
    expected = [[frame.tobytes() for frame in read_image(file)] for file in files]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(3):
            got = pool.map(lambda file: [frame.tobytes() for frame in read_image(file)], files)
            assert list(got) == expected


def test_reading_leaves_warnings_alone(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 5000)  # 9216 are more, but not twice as many
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        before = [*warnings.filters]
        for format in ("TIFF", "PNG", "BMP", "GIF", "WEBP"):
            for round in range(10):
                read_image(encoded(DRAWING, format))
                warnings.filterwarnings("ignore", message=f"{format}{round}")  # as other libraries add theirs
        assert not caught
        assert len(warnings.filters) <= len(before) + 50 + 1
        Image.open(io.BytesIO(encoded(DRAWING, "TIFF")))
        assert caught[-1].category is Image.DecompressionBombWarning


def test_pillows_settings_stay_as_they_were():
    program = """
import warnings
import safeqwen
from PIL import Image, ImageCms, ImageFile
before = Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, ImageFile.MAXBLOCK, [*warnings.filters]
from safeqwen.pictures import read_image
read_image(Image.new("RGB", (20, 20)))
added = [f for f in warnings.filters if f not in before[3]]
assert before[:3] == (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, ImageFile.MAXBLOCK)
(added,) = added
assert not added[1].match("anybody's warning")
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    subprocess.run([sys.executable, "-c", program], check=True, env=environment)


# ----------------------------------------------------------------------------------------------------------- mutations


def test_mutated_files_are_the_same_each_time(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    first, second = (mutated_files(tmp_path / folder, count=72, seed=5) for folder in "ab")
    assert [path.name for path in first] == [path.name for path in second]
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_every_mutated_file_is_frames_or_a_refusal(tmp_path, monkeypatch):
    outcomes, slowest = Counter(), 0.0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for path in mutated_files(tmp_path):
            results = []
            for setting in (False, True):
                monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", setting)
                start = time.monotonic()
                try:
                    results.append([frame.tobytes() for frame in read_image(path)])
                except UnreadableImage as error:
                    assert str(error).startswith(f"{path}: ")
                    results.append(None)
                slowest = max(slowest, time.monotonic() - start)
            assert results[0] == results[1], path
            mutation, format = path.stem[4:], path.suffix
            outcomes[mutation, format, results[0] is not None] += 1
            if results[0] is not None:  # nothing is accepted that Pillow itself would refuse
                monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", False)
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    Image.open(path).load()
    assert sum(outcomes.values()) == 500 and slowest < 5
    for format in (".png", ".jpg", ".webp", ".gif", ".bmp", ".tif"):
        refused = sum(n for (_, suffix, read), n in outcomes.items() if suffix == format and not read)
        read = sum(n for (_, suffix, read), n in outcomes.items() if suffix == format and read)
        assert refused > 10
        assert read > 10 or format == ".png" or format == ".gif" and read
    assert not any(read for (mutation, _, read) in outcomes if mutation == "cut-end")
    assert not any(read for (_, suffix, read) in outcomes if suffix == ".png")  # every byte is under a checksum
