"""
The bytes of a picture file as samples, whole or refused: what is missing might be the harm.

Pillow decodes them all. What it does not check in a file is checked here: checksums, ends, data that do not fill the
picture. libvips was tried beside it and left out (see the end of this text).

- **Animations** and pages of a TIFF are up to `MAX_FRAMES` frames, evenly spaced from the first to the last: what is
  only in between is not seen. An APNG's default image counts as its first frame. A multi-picture JPEG (MPO) is its
  first picture, and bytes behind the end of a picture are nothing, as in any viewer.
- **Damage** that a format cannot show is not seen: wrong bytes within JPEG, lossy WebP, BMP or plain TIFF data are the
  pixels that viewers make of them, and a progressive JPEG may lack its last refinements. A PNG is refused if any
  checksum is wrong.
- 32-bit integers and floats in files have no agreed range and are refused.

Several threads may call it. No setting of Pillow is changed or matters, but that a lower `Image.MAX_IMAGE_PIXELS` is
honoured: `ImageFile.LOAD_TRUNCATED_IMAGES` lets nothing through.

libvips 8.18 checks PNG, JPEG and TIFF itself, but does not see an APNG's frames, a cut list of TIFF pages or a GIF's
short frames, and its threads hang in a forked process. With it this file had 318 lines of code; it has 280 without.
"""

import contextlib
import io
import re
import struct
import threading
import warnings
import zlib

import numpy as np
from PIL import Image, ImageFile

from safeqwen.pictures.appearance import Samples
from safeqwen.pictures.errors import UnreadableImage, one_line


MAX_FRAMES = 8  # of an animation
MAX_PIXELS = 2 * 89_478_485  # where Pillow's own limit against decompression bombs raises
MIN_SIDE = 14  # one patch of Qwen2.5-VL
MAX_ASPECT_RATIO = 200  # of Qwen2.5-VL's image processor

# To reach an animation's last frame most formats decode all before it: at 60 megapixels a second, 12 seconds.
MAX_PIXELS_PASSED = 4  # times max_pixels
MAX_FRAMES_PASSED = 10_000
# Every scan of a JPEG is a pass over all its pixels; encoders write about ten.
MAX_SCANS = 64
# Pillow decodes these pixel by pixel in Python, two seconds a megapixel.
SLOW_DECODERS = ("bmp_rle", "ppm", "ppm_plain")
MAX_PIXELS_SLOW = 2_000_000

# The formats that are read, by how their files begin. Not among them: what runs a program (EPS, WMF), what needs a
# plugin, and ICO, which Pillow decodes before its size can be checked.
SIGNATURES = {
    "PNG": rb"\x89PNG\r\n\x1a\n",
    "JPEG": rb"\xff\xd8\xff",
    "WEBP": rb"RIFF....WEBP",
    "GIF": rb"GIF8[79]a",
    "BMP": rb"BM",
    "TIFF": rb"II[*+]\0|MM\0[*+]",
    "AVIF": rb"....ftyp(?:avif|avis|mif1|msf1)",
    "PPM": rb"P[1-6]\s",
}
EXIF_ORIENTATION = 0x0112
TIFF_PHOTOMETRIC, TIFF_PLANAR = 262, 284


def decode(data, name, max_pixels):
    """
    Yields the `Samples` of each frame of a file's bytes, up to `MAX_FRAMES`, in their order.

    Raises:
        UnreadableImage: if the bytes are no whole picture of a format in `SIGNATURES`, or its size is out of bounds.
    """
    if not data:
        raise UnreadableImage(f"{name}: is empty (0 bytes); get the file anew")
    format = signature(data)
    if format is None:
        kind = "a web page or drawing in XML, none" if data.lstrip()[:1] == b"<" else "none"
        raise UnreadableImage(
            f"{name}: is {kind} of the formats that are read ({', '.join(SIGNATURES)}); save it as PNG"
        )
    with refusals(name):
        try:
            image = Image.open(_WholeFile(data), formats=[format])
        except Image.UnidentifiedImageError:
            what = f"its {format} header is damaged or of an unsupported kind"
            raise UnreadableImage(f"{name}: {what}; save it as PNG") from None
        check_size(image, name, max_pixels)
        if format == "PNG":
            _check_png(data, name, image.info)
            _scale_transparency(image, data)
        elif format == "GIF":
            _check_gif(data, name)
        elif format == "AVIF" and not image.info.get("icc_profile"):
            if colours := re.search(rb"colrnclx(.{4})", data, re.DOTALL):
                image.info["cicp"] = struct.unpack(">HH", colours[1])
        if format == "JPEG":
            _check_jpeg(image, data, name)
        yield from read_frames(image, name, max_pixels)


def signature(data):
    """The format in `SIGNATURES` that the bytes begin as, or None."""
    head = bytes(data[:16])
    return next((format for format, start in SIGNATURES.items() if re.match(start, head, re.DOTALL)), None)


class _EndsEarly(Exception):
    """No OSError, which Pillow forgives while LOAD_TRUNCATED_IMAGES is set."""


class _OwnWarnings(threading.local):
    """Matches the warnings of a thread while it is in `read_image`, as a pattern would match their text."""

    ignored = False

    def match(self, text):
        return self.ignored


_own_warnings = _OwnWarnings()
_own_warnings_lock = threading.Lock()
_IGNORE_OWN = ("ignore", _own_warnings, Warning, None, 0)


@contextlib.contextmanager
def refusals(name, remedy="save it as PNG"):
    """Makes every failure of Pillow's an UnreadableImage, and its warnings silent for this thread alone."""
    # catch_warnings would change the filters under other threads. This one lets all other warnings pass.
    with _own_warnings_lock:
        if warnings.filters[:1] != [_IGNORE_OWN]:  # others have put theirs before it
            warnings.filters[:] = [_IGNORE_OWN, *(other for other in warnings.filters if other != _IGNORE_OWN)]
    _own_warnings.ignored = True
    try:
        yield
    except UnreadableImage:
        raise
    except (_EndsEarly, EOFError):
        raise UnreadableImage(f"{name}: ends before the picture does; get the whole file anew") from None
    except Image.DecompressionBombError as error:
        raise UnreadableImage(
            f"{name}: {one_line(error)}; shrink the picture or raise PIL.Image.MAX_IMAGE_PIXELS"
        ) from error
    except MemoryError as error:
        raise UnreadableImage(f"{name}: does not fit into memory; shrink the picture") from error
    except Exception as error:  # a broken file leads Pillow's readers to any exception
        raise UnreadableImage(f"{name}: is damaged or unsupported ({one_line(error)}); {remedy}") from error
    finally:
        _own_warnings.ignored = False


# -------------------------------------------------------------------------------------------------- from Pillow, whole


class _WholeFile(io.BytesIO):
    """A file that raises when more is read than it has; Pillow, if so set, would leave the rest of a picture black."""

    def read(self, size=-1):
        data = super().read(size)
        # Of blocks as large as these Pillow takes what there is.
        if len(data) < size and (not data or size not in (ImageFile.MAXBLOCK, ImageFile.SAFEBLOCK)):
            raise _EndsEarly
        return data


class _StrictDecoder:
    """One of Pillow's decoders, whose errors are raised; Pillow, if so set, would show what came before them."""

    def __init__(self, mode, name, *args):
        self.decoder = Image._getdecoder(mode, name, args)

    def decode(self, buffer):
        consumed, error = self.decoder.decode(buffer)
        if error < 0:
            raise ValueError(f"decoder error {error}")
        return consumed, error

    def __getattr__(self, name):
        return getattr(self.decoder, name)


Image.register_decoder("safeqwen_strict", _StrictDecoder)


def read_frames(image, name, max_pixels):
    """Yields the `Samples` of a `PIL.Image.Image`: up to `MAX_FRAMES` frames if it stands at an animation's first."""
    count = _count_frames(image, name)
    last = min(MAX_FRAMES, count) - 1
    wanted = {round(i * (count - 1) / last) for i in range(last + 1)} if last else {0}
    passed, pixels = len(wanted) if image.format == "TIFF" else count, image.width * image.height
    too_many = passed > MAX_FRAMES_PASSED or pixels * passed > MAX_PIXELS_PASSED * max_pixels
    if count > 1 and (too_many or pixels * len(wanted) > max_pixels):
        raise UnreadableImage(
            f"{name}: {count} frames of {image.width} x {image.height} pixels are too much to read; pass single "
            "frames or raise max_pixels"
        )
    # GIF and APNG draw each frame on the one before; Pillow loads those too, but not by our rules.
    for index in range(count) if image.format in ("GIF", "PNG") else sorted(wanted):
        if count > 1:
            image.seek(index)
        check_size(image, name, max_pixels)
        _load(image, name)
        if index in wanted:
            yield _samples(image, name)


def _count_frames(image, name):
    if image.format == "MPO" or image.tell() != 0 or not getattr(image, "is_animated", False):
        return 1
    if image.format != "TIFF":
        return image.n_frames
    # Pillow's n_frames compares each page with all before, which takes hours for a file made of tiny pages.
    for page in range(1, MAX_FRAMES_PASSED + 1):
        try:
            image.seek(page)
        except EOFError:
            image.seek(0)
            return page
    raise UnreadableImage(f"{name}: has over {MAX_FRAMES_PASSED} pages; pass them as pictures of their own")


def check_size(image, name, max_pixels):
    width, height = image.size
    size = f"{name}: is {width} x {height} pixels"
    if width * height > max_pixels:
        raise UnreadableImage(f"{size}, over the limit of {max_pixels}; shrink the picture or raise max_pixels")
    if min(width, height) < MIN_SIDE:
        raise UnreadableImage(f"{size}, too small for a patch of {MIN_SIDE} x {MIN_SIDE}; enlarge the picture")
    if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
        raise UnreadableImage(f"{size}, a ratio over {MAX_ASPECT_RATIO}; cut the picture into pieces")
    if any(tile[0] in SLOW_DECODERS for tile in getattr(image, "tile", ())) and width * height > MAX_PIXELS_SLOW:
        raise UnreadableImage(f"{size}, over {MAX_PIXELS_SLOW} in a slow encoding; save it as PNG")


def _load(image, name):
    tiles = getattr(image, "tile", None)
    if tiles and tiles[0][0] != "libtiff":  # libtiff's errors are always raised
        if image.format == "TIFF":
            layers = len(image.getbands()) if image.tag_v2.get(TIFF_PLANAR) == 2 else 1
            covered = sum((right - left) * (bottom - top) for _, (left, top, right, bottom), *_ in tiles)
            if covered < layers * image.width * image.height:
                raise UnreadableImage(f"{name}: has data for only a part of the picture; get the whole file anew")
        strict = []
        for tile in tiles:
            args = tile[3] if isinstance(tile[3], tuple) else () if tile[3] is None else (tile[3],)
            strict.append(type(tile)("safeqwen_strict", tile[1], tile[2], (tile[0], *args)))
        image.tile = strict
    image.load()


def _samples(image, name):
    """The `Samples` of a loaded `PIL.Image.Image`."""
    try:
        orientation = image.getexif().get(EXIF_ORIENTATION)
    except Exception:  # viewers show a picture with broken EXIF as it lies
        orientation = None
    about, transparent = {**image.info, "orientation": orientation}, image.info.get("transparency")
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        samples = np.asarray(image).astype(np.uint16)
        if getattr(image, "tag_v2", {}).get(TIFF_PHOTOMETRIC) == 0:  # white is zero: Pillow minds 8 bits only
            samples = 65535 - samples
        shown = np.where(samples == transparent, 0, 255).astype(np.uint8)
        return Samples(samples, Image.fromarray(shown) if isinstance(transparent, int) else None, about)
    if image.mode in ("I", "F"):
        raise UnreadableImage(
            f"{name}: has samples of 32 bits (mode {image.mode}), whose black and white are not agreed on; scale them "
            "to 8 bits"
        )
    if image.mode in ("La", "RGBa"):  # colours that were multiplied by alpha
        image = image.convert(image.mode.upper())
    if image.mode in ("P", "PA") or transparent is not None:
        image = image.convert("RGBA" if image.mode == "PA" or transparent is not None else "RGB")
    if image.mode in ("LA", "RGBA"):
        return Samples(image.convert(image.mode[:-1]), image.getchannel("A"), about)
    if image.mode not in ("L", "RGB", "CMYK"):
        image = image.convert("L" if image.mode == "1" else "RGB")
    return Samples(image, None, about)


# -------------------------------------------------------------------------------- what Pillow does not check in a file


def _check_png(data, name, info):
    """Refuses wrong checksums, a missing end, and data that do not fill the picture; puts cICP into `info`."""
    position, size, inflater, missing = 8, None, None, 0
    try:
        while True:
            length, kind = struct.unpack_from(">I4s", data, position)
            body = memoryview(data)[position + 8 : position + 8 + length]
            (checksum,) = struct.unpack_from(">I", data, position + 8 + length)
            if zlib.crc32(body, zlib.crc32(kind)) != checksum:
                raise UnreadableImage(f"{name}: is damaged (PNG checksum of {kind!r}); get the whole file anew")
            position += 12 + length
            if kind == b"IHDR":
                *size, depth, colour, _, _, interlaced = struct.unpack_from(">IIBBBBB", body)
                bits = depth * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
            elif kind == b"cICP" and inflater is None:
                info["cicp"] = tuple(body)
            elif kind == b"fcTL":
                size = struct.unpack_from(">II", body, 4)
            if kind in (b"IHDR", b"fcTL", b"IEND"):
                if inflater and missing > 0:
                    raise _EndsEarly
                inflater = None
            if kind == b"IEND":
                return
            if kind in (b"IDAT", b"fdAT"):
                if inflater is None:
                    inflater, missing = zlib.decompressobj(), _png_bytes(*size, bits, interlaced)
                body = bytes(body[4:] if kind == b"fdAT" else body)
                while body and missing > 0 and not inflater.eof:
                    missing -= len(inflater.decompress(body, min(missing, 2**20)))
                    body = inflater.unconsumed_tail
    except struct.error:
        raise _EndsEarly from None


def _png_bytes(width, height, bits, interlaced):
    """Bytes of the rows, each with its filter's byte, before compression."""
    passes = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
    total = 0
    for left, top, right, down in passes if interlaced else ((0, 0, 1, 1),):
        columns, rows = -((left - width) // right), -((top - height) // down)
        if columns > 0 and rows > 0:
            total += rows * (1 + (columns * bits + 7) // 8)
    return total


def _scale_transparency(image, data):
    """Brings a PNG's one transparent colour to the 8 bits of Pillow's samples."""
    transparency, depth = image.info.get("transparency"), data[24]
    if isinstance(transparency, tuple) and depth == 16:
        image.info["transparency"] = tuple(sample >> 8 for sample in transparency)
    elif isinstance(transparency, int) and image.mode == "L" and depth < 8:
        image.info["transparency"] = transparency * 255 // (2**depth - 1)


def _check_jpeg(image, data, name):
    """Refuses too many scans, and data that end early before an end marker: Pillow leaves the rest grey."""
    if data.count(b"\xff\xda") > MAX_SCANS and _end_of_jpeg(data)[1] > MAX_SCANS:
        raise UnreadableImage(f"{name}: has over {MAX_SCANS} scans, which take too long to decode; save it as PNG")
    _load(image, name)
    pixel = image.getpixel((image.width - 1, image.height - 1))
    if set(pixel if isinstance(pixel, tuple) else (pixel,)) <= {127, 128}:  # the grey of a block without data
        end, _ = _end_of_jpeg(data)
        longer = data[:end] + b"\x55" * 64 + data[end:]  # other data in place of the missing ones change it
        with Image.open(_WholeFile(longer), formats=["JPEG"]) as other:
            _load(other, name)
            if other.tobytes() != image.tobytes():
                raise _EndsEarly


def _end_of_jpeg(data):
    """The position of the end marker, and the scans before it: not those of a thumbnail in the header."""
    position, scans = 2, 0
    # 00 is a byte of the data, D0-D7 are restarts within them
    while marker := re.compile(rb"\xff([\x01-\xcf\xd8-\xfe])").search(data, position):
        if marker[1] == b"\xd9":
            return marker.start(), scans
        scans += marker[1] == b"\xda"
        position = marker.end()
        if marker[1] not in b"\x01\xd8":
            position += int.from_bytes(data[position : position + 2], "big")
    raise _EndsEarly


def _check_gif(data, name):
    """Refuses files without their end, and those with so many frames that counting them takes a minute."""
    frames = 0
    try:
        position = 13 + (6 << (data[10] & 7) if data[10] & 0x80 else 0)
        while data[position] != 0x3B:
            if data[position] == 0x21:
                position += 2
            elif data[position] == 0x2C:
                frames += 1
                flags = data[position + 9]
                position += 11 + (6 << (flags & 7) if flags & 0x80 else 0)
            else:  # Pillow and browsers skip such bytes
                position += 1
                continue
            while data[position]:
                position += data[position] + 1
            position += 1
            if frames > MAX_FRAMES_PASSED:
                raise UnreadableImage(f"{name}: has over {MAX_FRAMES_PASSED} frames; pass single frames")
    except IndexError:
        raise _EndsEarly from None
